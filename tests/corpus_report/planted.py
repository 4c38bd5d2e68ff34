"""A config whose corpora contain copies of held-out text and of a benchmark, and duplicates."""

import json
from pathlib import Path
import random
import unicodedata

import pytest

from tests.byte_tokenizer import write_byte_tokenizer
from tests.test_prepare import CONFIG

WORDS = ["".join(random.Random(seed).choices("abcdefgh", k=6)) for seed in range(400)]
HELDOUT = " ".join(WORDS[:30])
QUESTION = (
    "农夫家有四十只鸭子，每天早上一共下十六颗蛋。他自己吃三颗，用四颗做松饼，剩下的拿去市场卖，每颗"
    "两美元。他每天赚多少钱？"
)


def texts(seed: int, count: int) -> list[str]:
    """Return ``count`` different documents without a common n-gram."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=40)) for _ in range(count)]


def write_lines(path: Path, documents: list[str]) -> None:
    """Write documents as JSON Lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


ZH, EN = texts(1, 40), texts(2, 40)
ZH_PLANTED = [
    *ZH[:5],
    f"前言。\n{unicodedata.normalize('NFD', QUESTION)}\n然后",
    *ZH[5:],
    ZH[3],
]
"""Document 6 contains the question; document 42 repeats document 4."""
EN_PLANTED = [*EN[:9], HELDOUT.upper().replace(" ", "\n"), EN[2], ZH[7], *EN[9:]]
"""Document 10 is held-out text; 11 repeats document 3; 12 repeats document 9 of the first."""


@pytest.fixture
def planted(tmp_path) -> str:
    """Path of a config with planted copies; a folder ``eval`` with MGSM is next to it."""
    write_byte_tokenizer(tmp_path)
    write_lines(tmp_path / "zh.jsonl", ZH_PLANTED)
    write_lines(tmp_path / "en.jsonl", EN_PLANTED)
    write_lines(tmp_path / "held.jsonl", ["short", HELDOUT])
    (tmp_path / "eval/mgsm").mkdir(parents=True)
    (tmp_path / "eval/mgsm/mgsm_zh.tsv").write_text(f"一个问题？\t3\n{QUESTION}\t18\n")
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(tmp_path)))
    return str(tmp_path / "config.py")
