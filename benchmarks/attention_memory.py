"""Temporary HBM for the gradient of attention, with our kernel and with JAX's splash attention.

    python -m benchmarks.attention_memory [--chip v5e] [--length 8192] [--heads 32 ...]

The command compiles one forward and backward pass over one row in bfloat16, and prints the size of
the temporaries that the TPU compiler reports. Splash attention is compiled with its fused and its
unfused backward pass. If a program does not fit the chip, the command prints the size in the
compiler's error. The command needs libtpu but no TPU.
"""

import argparse
import functools
import re

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np

from benchmarks.attention_schedule import SPLASH_BLOCKS, TOPOLOGY
from llama_cpt.model.splash import splash_attention
from llama_cpt.training.lowering import require_compiler
from pallas_kernels.flash_attention import flash_attention

CONTENDERS = {"ours": flash_attention} | {
    f"splash {block}, {'fused' if fused else 'unfused'}": functools.partial(
        splash_attention, block=block, fused_backward=fused
    )
    for block in SPLASH_BLOCKS
    for fused in (False, True)
}


def temporaries(attention, chip: str, shape: argparse.Namespace) -> int:
    """Return the bytes of HBM that the gradient needs in addition to operands and results."""
    devices = topologies.get_topology_desc(TOPOLOGY[chip], platform="tpu").devices
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("x",))
    sharding = jax.NamedSharding(mesh, jax.P())

    def operand(heads: int) -> jax.ShapeDtypeStruct:
        size = (1, shape.length, heads, shape.head_dim)
        return jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=sharding)

    def loss(*operands):
        return attention(*operands).astype(jnp.float32).sum()

    query, key = operand(shape.heads), operand(shape.kv_heads)
    ids = jax.ShapeDtypeStruct((1, shape.length), jnp.int32, sharding=sharding)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, key, key, ids)
        memory = lowered.compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def describe(attention, chip: str, shape: argparse.Namespace) -> str:
    """Return the temporaries in MB as text, even if the program does not fit the chip."""
    try:
        return f"{temporaries(attention, chip, shape) / 1e6:,.0f} MB"
    except jax.errors.JaxRuntimeError as error:
        needs = re.search(r"temporaries \(([\d.]+)G\) exceeds available HBM", str(error))
        if not needs:
            raise
        return f"{float(needs[1]) * 2**30 / 1e6:,.0f} MB: more than the chip has"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", choices=TOPOLOGY, default="v5e")
    parser.add_argument("--only", choices=CONTENDERS)
    for name, value in {"length": 8192, "heads": 32, "kv-heads": 8, "head-dim": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    require_compiler()
    for name in [options.only] if options.only else CONTENDERS:
        print(f"{name}: {describe(CONTENDERS[name], options.chip, options)}", flush=True)


if __name__ == "__main__":
    main()
