"""Real text end to end: a vocabulary, a base on English, Chinese added at ALMR 0.33 and 1.0.

python benchmarks/real_text.py

About an hour on two cores; goes on where it stopped.
"""

import gzip
import json
from pathlib import Path
import subprocess
import sys

from configs.real_text import CORPUS, config
from llama_cpt.bilingual_world.vocabulary import train_vocabulary

# Each language's share of the text that the vocabulary is trained on, in bytes.
VOCABULARY_BYTES = 6_000_000


def write_sample(folder: Path) -> list[Path]:
    samples = []
    for language in ("en", "zh"):
        sample, size = folder / f"sample.{language}.jsonl", 0
        with sample.open("w", encoding="utf-8") as out:
            for source in sorted(Path(CORPUS, language).glob("*.train-*.jsonl.gz")):
                for number, line in enumerate(gzip.open(source, "rt", encoding="utf-8")):
                    if number % 5 == 0 and size < VOCABULARY_BYTES:
                        size += len(json.loads(line)["text"].encode())
                        out.write(line)
        samples.append(sample)
    return samples


def run(*arguments: str) -> None:
    print("\n$ python -m", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def main() -> None:
    tokenizer = Path(config.data.tokenizer)
    if not tokenizer.exists():
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        train_vocabulary(write_sample(tokenizer.parent), tokenizer, config.model.vocab_size)
    run("llama_cpt.train", "configs/real_text.py")
    run("llama_cpt.train", "configs/real_text_cpt.py")
    alone = ["--data.almr", "1.0", "--output", "runs/real_text/almr_1.0"]
    run("llama_cpt.train", "configs/real_text_cpt.py", *alone)


if __name__ == "__main__":
    main()
