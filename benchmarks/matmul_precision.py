"""What eight-bit products cost in loss: the same run on real text in bf16, int8 and fp8.

    PYTHONPATH=. JAX_PLATFORMS=cpu python benchmarks/matmul_precision.py

Trains a vocabulary of 2,048 and a small Llama on English text: in bf16 from two seeds, then in int8
and fp8 from the first. Held-out loss is computed in bf16 for all. Goes on where it stopped.
docs/matmul_precision.md has what came of it.
"""

import argparse
from dataclasses import replace
import gzip
import json
import os
from pathlib import Path
import subprocess
import sys

from configs.real_text import CORPUS
from configs.real_text import config as real_text
from llama_cpt.bilingual_world.vocabulary import train_vocabulary
from llama_cpt.config import (
    CheckpointConfig,
    ComputeConfig,
    CorpusConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_cpt.config_file import save

FOLDER = Path("runs/matmul_precision")
VOCABULARY, VOCABULARY_BYTES, LENGTH = 2048, 2_000_000, 128
# (precision, seed); the last tells how much the seed alone moves the loss.
RUNS = (("bf16", 0), ("int8", 0), ("fp8", 0), ("bf16", 1))


def write_sample(path: Path) -> None:
    source, size = sorted(Path(CORPUS, "en").glob("*.train-*.jsonl.gz"))[0], 0
    with path.open("w", encoding="utf-8") as out:
        for line in gzip.open(source, "rt", encoding="utf-8"):
            if size < VOCABULARY_BYTES:
                size += len(json.loads(line)["text"].encode())
                out.write(line)


def config_of(precision: str, seed: int, steps: int) -> TrainConfig:
    sizes = {"embed_dim": 128, "mlp_dim": 384, "num_layers": 4, "num_heads": 4}
    return replace(
        real_text,
        output=str(FOLDER / f"{precision}_seed{seed}_{steps}"),
        model=replace(real_text.model, vocab_size=VOCABULARY, **sizes),
        data=replace(
            real_text.data,
            tokenizer=str(FOLDER / "tokenizer.model"),
            prepared=str(FOLDER / "prepared"),
            sequence_length=LENGTH,
            original=(CorpusConfig("en", f"{CORPUS}/en/en.train-00000*.jsonl.gz"),),
            heldout=(CorpusConfig("en", f"{CORPUS}/en/en.valid.jsonl.gz"),),
        ),
        optimizer=OptimizerConfig(peak_learning_rate=2e-3, warmup_steps=20),
        num_steps=steps,
        seed=seed,
        compute=ComputeConfig(dtype="bfloat16", remat="none", matmul_precision=precision),
        checkpoint=CheckpointConfig(every_steps=50, keep=1),
        evaluation=EvaluationConfig(every_steps=steps, dense=False, documents=16, batch_size=16),
    )


def heldout_loss(config: TrainConfig) -> float:
    """After the run, which is done where it is not yet."""
    path = FOLDER / f"{Path(config.output).name}.json"
    save(config, path)
    # The two seeds' steps are one program.
    cache = {"JAX_COMPILATION_CACHE_DIR": str((FOLDER / "compiled").absolute())}
    command = [sys.executable, "-m", "llama_cpt.train", str(path)]
    subprocess.run(command, check=True, env=os.environ | cache)
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    return [told["eval/en/loss"] for told in map(json.loads, lines) if "eval/en/loss" in told][-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of each run (200)")
    steps = parser.parse_args().steps
    FOLDER.mkdir(parents=True, exist_ok=True)
    tokenizer = FOLDER / "tokenizer.model"
    if not tokenizer.exists():
        write_sample(FOLDER / "sample.jsonl")
        train_vocabulary([FOLDER / "sample.jsonl"], tokenizer, VOCABULARY)
    first = None
    for precision, seed in RUNS:
        loss = heldout_loss(config_of(precision, seed, steps))
        first = loss if first is None else first
        print(f"{precision}, seed {seed}: held-out {loss:.4f} nats a token, {loss - first:+.4f}")


if __name__ == "__main__":
    main()
