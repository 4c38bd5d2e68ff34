"""Compilation time, which the rates of progress lines leave out."""

import functools

import jax

from llama_cpt.runtime.progress import exclude_seconds

COMPILED = "/jax/core/compile/backend_compile_duration"
"""Name of the event that JAX records after XLA compiled a program."""
_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", COMPILED)


@functools.cache
def exclude_compilation() -> None:
    """Leave the time that JAX spends on compilation out of the rates of progress lines."""
    jax.monitoring.register_event_duration_secs_listener(_on_duration)


def _on_duration(event: str, duration_secs: float, **_: str | int) -> None:
    if event in _EVENTS:
        exclude_seconds(duration_secs)
