"""What the compiler of a step is told beside the program: the same for ``train`` and for ``plan``.

All are about overlap: what devices send each other goes on beside the products. libtpu has them so
by default today; written down, a plan holds for the run whatever a later libtpu's defaults, or
``LIBTPU_INIT_ARGS`` on a host, say. Not set, because it changed nothing in our compiled step:
``xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter``.
"""

TPU = {
    # Begins each transfer as early, and waits for it as late, as the schedule allows.
    "xla_tpu_enable_latency_hiding_scheduler": True,
    # A gather of weights is taken apart into steps of the product that runs beside it, ...
    "xla_tpu_enable_async_collective_fusion": True,
    # ... of several products where one is too short to hide it, ...
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    # ... and the matrix unit works while it is under way.
    "xla_tpu_overlap_compute_collective_tc": True,
    # A product with a gathered or scattered operand becomes a ring: a part is multiplied while
    # the next one comes.
    "xla_tpu_enable_windowed_einsum_for_all_gather": True,
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": True,
    # Gradients that are summed over slices travel while the rest of the step computes, ...
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    # ... those of unlike sizes too.
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}


def compiler_options(backend: str) -> dict[str, bool] | None:
    """For ``jax.jit``; None where the backend knows none of them."""
    return TPU if backend == "tpu" else None
