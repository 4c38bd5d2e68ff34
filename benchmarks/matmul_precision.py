"""Held-out loss with int8 and fp8 matrix products, on the text of docs/notes/real_text.md.

    JAX_PLATFORMS=cpu python -m benchmarks.matmul_precision [--steps BASE CPT]

The command trains an English base model and adds Chinese at ALMR 0.33 (a third of the tokens) in
four runs. Three runs differ in the dtype of matrix products: float32, int8 and fp8. The fourth run
uses float32 and a different seed, which selects different rows in a different order. All runs
compute held-out loss in float32. The command takes an hour and a half on two cores, or less with
fewer steps. If it is interrupted, start it again to resume. The results are in
docs/notes/matmul_precision.md.
"""

import argparse
from dataclasses import replace
import os
from pathlib import Path
import subprocess
import sys

from benchmarks.real_text import LANGUAGES, make_vocabulary
from configs.real_text.base import config as base
from configs.real_text.cpt import config as cpt
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.evaluation.learning_curves import read_curve

FOLDER = Path("runs/matmul_precision")
# (precision, seed) of each run, ordered by importance.
RUNS = (("bf16", 0), ("int8", 0), ("fp8", 0), ("bf16", 1))


def train(config: TrainConfig) -> None:
    """Run or resume the training of ``config`` in a new process."""
    path = FOLDER / f"{Path(config.output).name}.json"
    save_config(config, path)
    # A shared cache, because runs with different seeds have the same compiled step.
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
