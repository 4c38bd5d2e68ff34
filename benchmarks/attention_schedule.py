"""The TPU compiler's schedule of our attention kernels and of JAX's splash attention.

    python -m benchmarks.attention_schedule [--chip v5e] [--heads 32 --kv-heads 8 --head-dim 128]

`libtpu` writes the schedule of a TensorCore as text, with one instruction bundle per line. The
command splits each kernel into regions without a branch. For each region with matrix products, it
prints the number of bundles and cycles per thousand scores, the matrix products per tile, the
register spills, and the share of cycles in which the matrix units are occupied. A score is a
visible pair of a query and a key in one head. Cycles include the empty bundles that the compiler
schedules while all units wait; the number of bundles does not include the empty bundles. Both
numbers are lower bounds, because they do not include the time to wait for memory. A forward pass is
printed before its backward pass. The command needs libtpu but no TPU.
"""

import argparse
from collections import Counter
import functools
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile
from typing import Any

from llama_cpt.training.lowering import COMPILER_SETTINGS

TOPOLOGY = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
MATRIX_SIDE = {"v5e": 128, "v5p": 128, "v6e": 256, "tpu7x": 256}
# Number of rows of a bfloat16 operand that one instruction feeds to a matrix unit.
ROWS_FED = 16
SPLASH_BLOCKS = (512, 1024)


def lower_kernel(spec: dict) -> tuple[Any, Any]:
    """Lower a forward and backward pass of the kernels; return the lowered program and its mesh."""
    import jax
    from jax.experimental import topologies
    import jax.numpy as jnp
    import numpy as np

    from llama_cpt.model.splash import splash_attention
    from pallas_kernels.flash_attention import flash_attention

    devices = topologies.get_topology_desc(TOPOLOGY[spec["chip"]], platform="tpu").devices
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("x",))
    sharding = jax.NamedSharding(mesh, jax.P())
    splash = functools.partial(splash_attention, block=spec["block"])
    attention = splash if spec["block"] else flash_attention

    def operand(heads: int) -> jax.ShapeDtypeStruct:
        shape = (1, spec["length"], heads, spec["head_dim"])
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def loss(*operands):
        return attention(*operands).astype(jnp.float32).sum()

    query, key = operand(spec["heads"]), operand(spec["kv_heads"])
    ids = jax.ShapeDtypeStruct((1, spec["length"]), jnp.int32, sharding=sharding)
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, key, key, ids), mesh


def compile_kernel(spec: dict) -> None:
    """Compile the kernels, and print the bytes of their temporaries as JSON.

    Each call needs a new process, because libtpu reads its flags only once per process.
    """
    compiled = lower_kernel(spec)[0].compile()
    print(json.dumps({"temporaries": compiled.memory_analysis().temp_size_in_bytes}))


def regions_of(bundles: Path, utilization: Path) -> list[Counter]:
    """Return the counts for each branch-free region with matrix products.

    The keys of a counter are "bundles", "products", "spills" and "held". The value of "held" is
    the number of times that a matrix unit is occupied.
    """
    held = [line.split() for line in utilization.read_text().split("UTILIZATION:")[1].splitlines()]
    held = [int(line[0]) for line in held if line]
    regions, region, number = [], Counter(), 0
    for line in bundles.read_text().splitlines():
        head = re.match(r"\s*(?:0x[0-9a-f]+|0)\s*(LH|LB|LE|PB|PF|CT)?\s*:", line)
        if not head:
            continue
        if head[1]:
            regions.append(region)
            region = Counter()
        region["bundles"] += 1
        region["products"] += len(re.findall(r"vmatmul\.", line))
        region["spills"] += len(re.findall(r"_spill\]", line))
        region["held"] += held[number] if number < len(held) else 0
        number += 1
        if "sbr.rel" in line:
            regions.append(region)
            region = Counter()
    return [r for r in [*regions, region] if r["products"]]


def schedule(spec: dict) -> tuple[dict[str, list[Counter]], int]:
    """Return the regions of each kernel by name, and the bytes of the program's temporaries."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            **COMPILER_SETTINGS,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
        }
        done = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(spec)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{spec} does not compile:\n{done.stderr[-3000:]}")
        found = {}
        for bundles in sorted(Path(folder).glob("*-final_bundles.txt")):
            name = re.sub(r"^\d+-|-\d+-final_bundles\.txt$", "", bundles.name)
            if "analysis" in name or "fusion" in name or not re.search("attention|splash", name):
                continue
            utilization = "hlo-static-per-bundle-utilization"
            stages = ("final_bundles", f"final_{utilization}")
            stages += ("packed-bundles-post-ra", f"pre-delay_{utilization}")
            paths = [next(Path(folder).glob(f"*-{name}-??-{stage}.txt")) for stage in stages]
            found[name] = regions_of(*paths[:2])
            for region, waiting in zip(found[name], regions_of(*paths[2:]), strict=True):
                region["cycles"], region["held"] = waiting["bundles"], waiting["held"]
        return found, json.loads(done.stdout.splitlines()[-1])["temporaries"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", choices=TOPOLOGY, action="append")
    sizes = {"length": 8192, "heads": 32, "kv-heads": 8, "head-dim": 128}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        compile_kernel(json.loads(options.child))
        return
    shape = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in sizes}
    for chip in options.chip or TOPOLOGY:
        for block in (0, *SPLASH_BLOCKS):
            report(chip, block, shape)


def report(chip: str, block: int, shape: dict) -> None:
    """Print one line per region of each kernel."""
    kernels, temporaries = schedule({"chip": chip, "block": block} | shape)
    label = f"splash {block}" if block else "ours"
    print(f"{chip} {label}: {temporaries / 1e6:,.0f} MB of temporaries", flush=True)
    # A tile of our kernel covers all query heads of a key-value head. A tile of splash covers one.
    heads = 1 if block else shape["heads"] // shape["kv_heads"] * max(128 // shape["head_dim"], 1)
    scores = heads * (block or 512) ** 2
    product = scores * shape["head_dim"] / (ROWS_FED * MATRIX_SIDE[chip] ** 2)
    for name, regions in kernels.items():
        for region in regions:
            print(
                f"  {name[:44]:44} {region['bundles']:6} bundles "
                f"{1000 * region['bundles'] / scores:7.3f} and {region['cycles']:6} cycles "
                f"{1000 * region['cycles'] / scores:7.3f} per thousand scores "
                f"{region['products'] / product:6.2f} products per tile  "
                f"matrix units held {region['held'] / 4 / region['cycles']:4.0%}  "
                f"spills {region['spills']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
