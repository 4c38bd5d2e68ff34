"""Memory that the compiler freed is returned to the operating system after long compilations."""

import ctypes

import pytest

from llama_cpt.runtime import host_memory


@pytest.mark.parametrize(
    ("event", "seconds", "releases"),
    [
        ("/jax/core/compile/backend_compile_duration", 2.0, 1),
        ("/jax/core/compile/backend_compile_duration", 0.1, 0),
        ("/jax/core/compile/jaxpr_trace_duration", 2.0, 0),
    ],
)
def test_long_compilations_release_memory(event, seconds, releases, monkeypatch):
    calls = []

    class Glibc:
        def malloc_trim(self, padding: int) -> None:
            calls.append(padding)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Glibc())
    monkeypatch.setattr(host_memory.sys, "platform", "linux")
    host_memory._release(event, seconds, fun_name="step")
    assert calls == [0] * releases
