"""Learning and forgetting on real text: an English model learns Chinese at ALMR 0.33 and 1.0.

    JAX_PLATFORMS=cpu python -m benchmarks.real_text

The command trains a vocabulary, a base model on English, and two models that continue with Chinese.
It then exports the models, and samples continuations with transformers, which requires torch. The
command takes about 45 minutes on two cores. If it is interrupted, start it again to resume. The
last printed lines and the figure are in docs/notes/real_text.md.
"""

import gzip
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

import torch
import transformers

from configs.real_text.base import CORPUS, config
from examples.bilingual_world.vocabulary import train_vocabulary
from llama_cpt.evaluation.learning_curves import draw_curves, finding, read_curve

# Maximum bytes of text per language for the training of the vocabulary.
VOCABULARY_BYTES = 6_000_000
LANGUAGES = {"zh": "Chinese", "en": "English"}
PROMPTS = ("The history of the city", "In the morning she", "中国的历史", "他在大学")
NEW_TOKENS = 40


def write_sample(folder: Path) -> list[Path]:
    """Write one file per language with every fifth document, up to VOCABULARY_BYTES.

    Returns the paths of the files.
    """
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
    """Print and run ``python -m`` with ``arguments``. Raises CalledProcessError if it fails."""
    print("\n$ python -m", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def continuations(folder: Path) -> None:
    """Print one continuation per prompt, sampled by transformers from an exported model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    print(f"\n{folder}")
    for prompt in PROMPTS:
        torch.manual_seed(0)
        ids = model.generate(
            **tokenizer(prompt, return_tensors="pt"),
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_p=0.9,
            temperature=0.8,
        )
        print("  " + tokenizer.decode(ids[0], skip_special_tokens=True).replace("\n", " "))


def make_vocabulary() -> Path:
    """Return the path of the vocabulary, which is trained first if the file does not exist."""
    tokenizer = Path(config.data.tokenizer)
    if not tokenizer.exists():
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        train_vocabulary(write_sample(tokenizer.parent), tokenizer, config.architecture.vocab_size)
    return tokenizer


def main() -> None:
    folder = make_vocabulary().parent
    run("llama_cpt.train", "configs/real_text/base.py")
    curves = []
    for almr in ("0.33", "1.0"):
        output = f"runs/real_text/almr_{almr}"
        run("llama_cpt.train", "configs/real_text/cpt.py", "--data.almr", almr, "--output", output)
        curves.append(read_curve(output, f"ALMR {almr}", tuple(LANGUAGES)))
    for name in ("base", "almr_0.33", "almr_1.0"):
        exported = folder / f"exported_{name}"
        if not (exported / "config.json").exists():
            run("llama_cpt.convert", "to-hf", str(folder / name), str(exported))
        continuations(exported)
    draw_curves(curves, folder / "real_text.png", added="zh", original="en", names=LANGUAGES)
    print(finding(curves, "zh", "en", LANGUAGES))


if __name__ == "__main__":
    main()
