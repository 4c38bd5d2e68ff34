"""The loss of eight-bit matrix products: the run of docs/notes/real_text.md in int8 and fp8.

    JAX_PLATFORMS=cpu python -m benchmarks.matmul_precision [--steps BASE CPT]

The command adds Chinese to that page's English base at ALMR 0.33: with products in the compute type
(float32), in int8, in fp8, and in the compute type with another seed, which selects other rows in
another order. Held-out loss is computed in float32 for all runs. It takes an hour and a half on two
cores, less with fewer steps, and resumes after an interruption. docs/notes/matmul_precision.md has
the results.
"""

import argparse
from dataclasses import replace
import os
from pathlib import Path
import subprocess
import sys

from benchmarks.real_text import LANGUAGES, make_vocabulary
from configs.real_text import config as base
from configs.real_text_cpt import config as cpt
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.evaluation.learning_curves import read_curve

FOLDER = Path("runs/matmul_precision")
# (precision, seed), the most informative run first.
RUNS = (("bf16", 0), ("int8", 0), ("fp8", 0), ("bf16", 1))


def train(config: TrainConfig) -> None:
    """Run or resume the training of ``config`` in a process."""
    path = FOLDER / f"{Path(config.output).name}.json"
    save_config(config, path)
    # Runs with different seeds share the compiled step.
    cache = {"JAX_COMPILATION_CACHE_DIR": str((FOLDER / "compiled").absolute())}
    command = [sys.executable, "-m", "llama_cpt.train", str(path)]
    subprocess.run(command, check=True, env=os.environ | cache)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs=2, default=(base.num_steps, cpt.num_steps))
    base_steps, steps = parser.parse_args().steps
    make_vocabulary()
    FOLDER.mkdir(parents=True, exist_ok=True)
    start = str(FOLDER / f"base_{base_steps}")
    train(replace(base, output=start, num_steps=base_steps))
    found = {}
    for precision, seed in RUNS:
        output = str(FOLDER / f"{precision}_seed{seed}_{base_steps}_{steps}")
        compute = replace(cpt.compute, matmul_precision=precision)
        chosen = {"init_from": start, "num_steps": steps, "seed": seed, "compute": compute}
        train(replace(cpt, output=output, **chosen))
        bits = read_curve(output, precision, tuple(LANGUAGES)).bits
        found[precision, seed] = {language: points[-1] for language, points in bits.items()}
    titles = (f"{name} | to bf16" for name in LANGUAGES.values())
    print(f"| products | seed | {' | '.join(titles)} |")
    same = found["bf16", 0]
    for (precision, seed), ends in found.items():
        cells = (f"{ends[one]:.4f} | {ends[one] - same[one]:+.4f}" for one in LANGUAGES)
        print(f"| {precision} | {seed} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
