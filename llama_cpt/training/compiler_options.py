"""XLA options with which both ``train`` and ``plan`` compile the training step.

Every option makes the compiler overlap communication with matrix products. The values are the
defaults of current libtpu versions. They are set explicitly so that a plan stays valid for the run
even if a later libtpu or ``LIBTPU_INIT_ARGS`` on a host changes a default.
``xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter`` is not set because it did not change
the compiled step.
"""

TPU = {
    # Start each transfer as early as the schedule allows, and wait for the result as late as the
    # schedule allows.
    "xla_tpu_enable_latency_hiding_scheduler": True,
    # Fuse an all-gather of weights with the matrix product that runs at the same time.
    "xla_tpu_enable_async_collective_fusion": True,
    # Fuse the all-gather with several products if one product is too short to hide it.
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    # Keep the matrix unit busy during the fused all-gather.
    "xla_tpu_overlap_compute_collective_tc": True,
    # Compute a product with a gathered or scattered operand as a ring: the device multiplies one
    # part while the next part is in transit.
    "xla_tpu_enable_windowed_einsum_for_all_gather": True,
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": True,
    # Sum gradients over slices while the rest of the step is computed.
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    # Do the same for gradients of different sizes.
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}


def compiler_options(backend: str) -> dict[str, bool] | None:
    """Return the compiler options for ``jax.jit`` on TPUs, or None for other backends."""
    return TPU if backend == "tpu" else None
