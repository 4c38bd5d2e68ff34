"""Bytes that our attention kernels and JAX's splash attention move between HBM and VMEM.

    JAX_PLATFORMS=cpu python -m benchmarks.attention_traffic [--chip v5e] [--heads 32 ...]

No kernel is executed. The command evaluates each kernel's index maps over the kernel's grid and
counts the blocks that change. It prints the bytes read and written per score, and the MiB of VMEM
for scratch and for double-buffered blocks. A score is a visible pair of a query and a key in one
head. The row has 8,192 bfloat16 tokens, in one document and in four documents. The figures do not
include work of XLA outside of the kernels, such as the transposition of splash's operands and the
sum of splash's partial gradients.
"""

import argparse
import functools

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np

from benchmarks.attention_schedule import SPLASH_BLOCKS, TOPOLOGY
from benchmarks.pallas_calls import recorded
from llama_cpt.model.splash import splash_attention
from pallas_kernels.block_sizes import OF_DEVICE_KIND
from pallas_kernels.flash_attention import flash_attention

ROWS = {"one document": (8192,), "four documents": (3000, 2200, 1792, 1200)}


def report(label: str, attention, shape: argparse.Namespace, documents: tuple[int, ...]) -> None:
    """Print one line per kernel of a forward and backward pass over one row.

    ``documents`` are the numbers of tokens of the row's documents.
    """
    length = sum(documents)
    scores = shape.heads * sum(n * (n + 1) // 2 for n in documents)
    ids = jnp.asarray(np.repeat(np.arange(len(documents)), documents)[None], jnp.int32)
    query, key = (
        jnp.zeros((1, length, heads, shape.head_dim), jnp.bfloat16)
        for heads in (shape.heads, shape.kv_heads)
    )

    def gradient(query, key, value):
        out, back = jax.vjp(lambda *operands: attention(*operands, ids), query, key, value)
        back(out)

    for call in recorded(gradient, query, key, key):
        print(
            f"  {label:22} {call.name:40} read {call.read / scores:6.3f} written "
            f"{call.written / scores:6.3f} bytes per score, VMEM {call.vmem / 2**20:5.1f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", choices=TOPOLOGY, action="append")
    for name, value in {"heads": 32, "kv-heads": 8, "head-dim": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    contenders = {}
    for chip in options.chip or TOPOLOGY:
        device = topologies.get_topology_desc(TOPOLOGY[chip], platform="tpu").devices[0]
        sizes = OF_DEVICE_KIND[device.device_kind]
        contenders[f"ours, {chip}"] = functools.partial(flash_attention, block_sizes=sizes)
    for block in SPLASH_BLOCKS:
        for fused in (True, False):
            contenders[f"splash {block}, {'fused' if fused else 'unfused'}"] = functools.partial(
                splash_attention, block=block, fused_backward=fused
            )
    for row, documents in ROWS.items():
        print(f"{row} of {documents}")
        for label, attention in contenders.items():
            report(label, attention, options, documents)


if __name__ == "__main__":
    main()
