"""Memory and cycles of chunked cross-entropy by chunk size, as the TPU compiler reports them.

    python -m benchmarks.cross_entropy_memory [--chip v5p] [CHUNK_TOKENS ...]

The compiled program computes the loss and the gradients of hidden states and head on one device.
The command prints the size of the temporaries in HBM and the number of cycles. The cycles come from
the compiler's cost model, and the body of the loop counts once per chunk. The temporaries include
the head in bfloat16, the head's gradient in float32, and the logits of one chunk. The command needs
libtpu but no TPU.
"""

import argparse
from collections import Counter
import re

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from llama_cpt.config.schema import MeshConfig
from llama_cpt.objectives.cross_entropy import linear_cross_entropy
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training.lowering import require_compiler

TOPOLOGY = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def compile_loss(options: argparse.Namespace, chunk_tokens: int) -> jax.stages.Compiled:
    """Compile the loss and the gradients of ``options.tokens`` tokens for one device."""
    topology = topologies.get_topology_desc(TOPOLOGY[options.chip], platform="tpu")
    mesh = make_mesh(MeshConfig(1, 1, 1), topology.devices[:1])
    sharding = jax.NamedSharding(mesh, jax.P())

    def operand(dtype: jnp.dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def loss(hidden, head, targets, weights):  # noqa: ANN001, ANN202
        return linear_cross_entropy(hidden, head, targets, weights, 0.0, chunk_tokens)

    hidden = operand(jnp.bfloat16, 1, options.tokens, options.embed)
    head = operand(jnp.float32, options.vocab, options.embed)
    targets, weights = (operand(dtype, 1, options.tokens) for dtype in (jnp.int32, jnp.float32))
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    with jax.set_mesh(mesh):
        return gradient.lower(hidden, head, targets, weights).compile()


def cycles_of(text: str, chunks: int) -> int:
    """Return the cycles of a program with one loop over ``chunks`` chunks.

    ``text`` is the text of the compiled program, which has the estimates of the cost model.
    """
    bodies = set(re.findall(r"body=%([\w.\-]+)", text))
    cycles, computation = Counter(), ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", line):
            computation = header[1]
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
            cycles[computation in bodies] += int(estimate[1])
    return cycles[False] + chunks * cycles[True]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chunk_tokens", nargs="*", type=int, default=[512, 1024, 2048, 4096])
    parser.add_argument("--chip", choices=TOPOLOGY, default="v5p")
    for name, value in {"tokens": 8192, "vocab": 128256, "embed": 4096}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    require_compiler()
    for chunk_tokens in options.chunk_tokens:
        compiled = compile_loss(options, chunk_tokens)
        text, memory = compiled.as_text(), compiled.memory_analysis()
        assert text is not None and memory is not None
        cycles = cycles_of(text, -(-options.tokens // chunk_tokens))
        megabytes = memory.temp_size_in_bytes / 1e6
        print(
            f"{options.chip}, chunks of {chunk_tokens} tokens: {megabytes:,.0f} MB of "
            f"temporaries, {cycles / 1e6:.1f} million cycles",
            flush=True,
        )


if __name__ == "__main__":
    main()
