"""A tiny random model and tiny benchmark files in the layout of the real benchmarks."""

import csv
import gzip
import json
from pathlib import Path

import tokenizers
import transformers

from tests.weights.hf_models import save_llama

LETTERS = "ABCD"
TEXT = "The cat sat on 12 mats and 7 hats. 猫坐在垫子上，太阳从东边升起。What is it? Answer: "
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>")
CHAT = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def save_tokenizer(folder: Path, *, chat: bool = False) -> int:
    """Save a byte-level tokenizer that puts BOS before every text; return its vocabulary size."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[*SPECIAL, *(CHAT if chat else ())],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 4, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], made.token_to_id(SPECIAL[0]))]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[1]
    ).save_pretrained(folder)
    return made.get_vocab_size()


def save_model(folder: Path, **fields) -> str:
    """Save a random Llama model and its tokenizer in ``folder``; return the path."""
    size = save_tokenizer(folder)
    bos = {"bos_token_id": 0, "eos_token_id": 1}
    return save_llama(folder, **{"vocab_size": size, "num_hidden_layers": 2, **bos, **fields})


def write_benchmarks(folder: Path) -> str:
    """Write CMMLU and BLiMP with two parts each, XCOPA and GSM8K to ``folder``; return the path."""
    for subject in ("anatomy", "arts"):
        _csv(folder / f"cmmlu/dev/{subject}.csv", 5)
        _csv(folder / f"cmmlu/test/{subject}.csv", 3)
    _lines(
        folder / "xcopa/test.zh.jsonl",
        {
            "premise": "太阳升起。",
            "choice1": "猫坐在垫子上。",
            "choice2": "Mats",
            "question": "cause",
        },
        [{"label": n % 2} for n in range(3)],
    )
    pairs = [{"UID": uid} for uid in ("anaphor", "island") for _ in range(3)]
    _lines(
        folder / "blimp/blimp.jsonl.gz",
        {"sentence_good": "Cats sit.", "sentence_bad": "Cat sit."},
        pairs,
    )
    for split, count in (("train", 6), ("test", 3)):
        rows = [{"question": f"{n} cats?", "answer": f"So.\n#### {n}"} for n in range(count)]
        _lines(folder / f"gsm8k/{split}.jsonl.gz", {}, rows)
    return str(folder)


def _csv(file: Path, count: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["", "Question", *LETTERS, "Answer"])
        for n in range(count):
            writer.writerow(
                [n, f"太阳 {file.stem} {n}？", *(f"猫 {n}{x}" for x in LETTERS), LETTERS[n % 4]]
            )


def _lines(file: Path, shared: dict, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(shared | row, ensure_ascii=False) + "\n" for row in rows)
    content = text.encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
