"""Compiler options of the training step, the same for ``train`` and for ``plan``.

All of them overlap communication with matrix products. They are libtpu's defaults today; stating
them keeps a plan valid for the run if the defaults of a later libtpu or ``LIBTPU_INIT_ARGS`` on a
host differ. ``xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter`` is not set because it
changed nothing in the compiled step.
"""

TPU = {
    # Starts each transfer as early, and waits for it as late, as the schedule allows.
    "xla_tpu_enable_latency_hiding_scheduler": True,
    # Splits a gather of weights into steps of the product that runs at the same time, ...
    "xla_tpu_enable_async_collective_fusion": True,
    # ... over several products if one is too short to hide it, ...
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    # ... and keeps the matrix unit busy meanwhile.
    "xla_tpu_overlap_compute_collective_tc": True,
    # Turns a product with a gathered or scattered operand into a ring: one part is multiplied
    # while the next one is in transit.
    "xla_tpu_enable_windowed_einsum_for_all_gather": True,
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": True,
    # Sums gradients over slices while the rest of the step computes, ...
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    # ... also gradients of different sizes.
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}


def compiler_options(backend: str) -> dict[str, bool] | None:
    """Return the options for ``jax.jit``, or None if ``backend`` does not support them."""
    return TPU if backend == "tpu" else None
