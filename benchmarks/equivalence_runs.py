"""The runs that ``benchmarks.equivalence`` compares, with the old names of ``renames.csv``.

All paths on the command lines are relative to the output, so different outputs contain equal paths.
The runs are small: they train the demo's model for six steps per stage.
"""

from collections.abc import Callable
import csv
from dataclasses import dataclass
import json
from pathlib import Path
import shlex
from typing import Any

import numpy as np

from benchmarks.renames import Renames

_COMMON = (
    "--data.tokenizer tokenizer.model --data.heldout.0.source world/zh.heldout.jsonl "
    "--data.heldout.1.source world/en.heldout.jsonl --num-steps 6 --optimizer.warmup-steps 2 "
    "--checkpoint.every-steps 3 --evaluation.every-steps 3 --evaluation.documents 6 "
    "--evaluation.batch-size 4 --log-every-steps 1"
)
_QUESTION = "What does a cat eat?\n/save chat.json\n"
_ORIGINAL = "--data.original.0.source world/en.{0}.jsonl"
_BOTH = _ORIGINAL + " --data.additional.0.source world/zh.{0}.jsonl"


@dataclass(frozen=True)
class Run:
    """One command, ``python -m module arguments``."""

    name: str
    module: str
    arguments: str
    stdin: str = ""
    stdout: str = ""
    """The file to which the command's standard output is written; '' discards the output."""
    before: Callable[[Path, Renames], None] | None = None
    """A function that writes an input file of the command before the command starts."""

    def command(self, tree: Path, renames: Renames) -> list[str]:
        """Return the arguments of the Python interpreter, with the new names of ``renames``."""
        words = [self._word(word, tree, renames) for word in shlex.split(self.arguments)]
        return ["-m", renames.apply("module", self.module), *words]

    def _word(self, word: str, tree: Path, renames: Renames) -> str:
        if word.startswith("configs/"):
            return str(tree / renames.apply("config_file", word))
        if (renamed := renames.apply("option", word)) != word or not word.startswith("--"):
            return renamed
        field = word.removeprefix("--").replace("-", "_")
        return "--" + renames.apply("field", field).replace("_", "-")


def _train(name: str, start: str, prepared: str, text: str) -> Run:
    arguments = f"configs/demo_{name}.py {_COMMON} --output {name} --data.prepared {prepared}"
    return Run(name, "llama_cpt.train", f"{arguments} --init-from {start} {_BOTH.format(text)}")


def _write_lora_config(results: Path, renames: Renames) -> None:
    """Write the SFT run's config with LoRA adapters.

    A file is needed, because no command-line option can add a section to a config.
    """
    config = json.loads((results / "sft" / "config.json").read_text("utf-8"))
    config |= _renamed({"lora": {"rank": 4, "alpha": 8.0}}, renames)
    (results / "lora.json").write_text(json.dumps(config, indent=1), "utf-8")


def _write_sweep_config(results: Path, renames: Renames) -> None:
    """Write a sweep over two mixture ratios and two learning rates, based on the CPT run."""
    axes = (("data.almr", [0.25, 0.5]), ("optimizer.peak_learning_rate", [1e-3, 3e-3]))
    values = [{"field": renames.apply("field", name), "values": list(v)} for name, v in axes]
    sweep = {"output": "sweep", "pair": "en+zh", "axes": values, "train": {}}
    config = json.loads((results / "cpt" / "config.json").read_text("utf-8"))
    renamed = _renamed(sweep, renames)
    renamed[renames.apply("field", "train")] = config
    (results / "sweep.json").write_text(json.dumps(renamed, indent=1), "utf-8")


def _renamed(value: Any, renames: Renames, path: str = "") -> Any:
    """Return ``value``, part of a config at ``path``, with its keys renamed."""
    if isinstance(value, list):
        return [_renamed(one, renames, path) for one in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, deeper in value.items():
        whole = f"{path}.{key}".lstrip(".")
        found[renames.apply("field", whole).rsplit(".", 1)[-1]] = _renamed(deeper, renames, whole)
    return found


def _write_law_table(results: Path, renames: Renames) -> None:
    """Write a table of twenty runs, with losses from an invented loss surface.

    The loss of the new language is lowest at a high learning rate, the loss of the original
    language at a low learning rate.
    """
    random = np.random.default_rng(0)
    rows = [
        row
        for almr in (0.1, 0.3, 0.5, 0.7, 0.9)
        for rate in (1e-4, 3e-4, 1e-3, 3e-3)
        for row in _law_rows(random, almr, rate)
    ]
    with (results / "law_runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([renames.apply("column", name) for name in rows[0]])
        writer.writerows(row.values() for row in rows)


def _law_rows(random: np.random.Generator, almr: float, rate: float) -> list[dict[str, Any]]:
    """Return the evaluations of one run as rows of the table, with noise of 0.2 %.

    The loss of the original language is highest in the middle of the run.
    """
    high = np.log10(rate / 2e-3)
    forgotten = 0.30 * 10 ** (0.75 * high) * almr**1.6 + 0.05 * almr**4
    replayed = 0.03 * (1 - almr) * np.exp(-((high + 0.4) ** 2))
    ends = {
        "additional": (4.0, 1.5 * (1 + 0.16 * (1 - almr) ** 1.4 + 0.09 * (high - almr / 4) ** 2)),
        "original": (1.0, 0.985 + forgotten - replayed),
    }
    rows = []
    for share in (0.02, 0.1, 0.3, 0.6, 1.0):
        for (group, (base, end)), corpus in zip(ends.items(), ("zh", "en"), strict=True):
            worse = 0.0 if group == "additional" else 0.25 * (end - 0.97)
            bits = base + (end - base) * share**0.25 + worse * np.sin(np.pi * share**0.5)
            bits *= np.exp(random.normal(0, 0.002))
            rows.append(_law_row(almr, rate, share, (group, corpus), float(bits), base))
    return rows


def _law_row(
    almr: float, rate: float, share: float, names: tuple[str, str], bits: float, base: float
) -> dict[str, Any]:
    run = {"run": f"{almr:g} {rate:g}", "pair": "en+zh", "parameters": 1e6, "tokens": 1e8 * share}
    run |= {"step": round(1000 * share), "almr": almr, "mixture_order": "interleaved"}
    run |= {"learning_rate": rate, "schedule": "cosine", "batch_tokens": 1e5, "seed": 0}
    run |= {"tokenizer": "a", "corpus": names[1], "group": names[0], "loss": 2 * bits}
    return run | {"bits_per_byte": bits, "base_loss": 2 * base, "base_bits_per_byte": base}


def world_program(renames: Renames) -> str:
    """Return a Python program that writes the demo's text and trains its vocabulary."""
    world, vocabulary = (
        renames.apply("module", f"llama_cpt.bilingual_world.{name}")
        for name in ("documents", "vocabulary")
    )
    write, train, *names = (
        renames.apply("identifier", name)
        for name in ("write_world", "train_vocabulary", "documents", "heldout", "chat_repeats")
    )
    sizes = dict(zip(names, (1500, 40, 2), strict=True))
    sources = ["world/en.train.jsonl", "world/zh.train.jsonl"]
    return (
        f"from {world} import {write}\nfrom {vocabulary} import {train}\n"
        f"{write}('world', 0, **{sizes})\n{train}({sources}, 'tokenizer.model', 4096)\n"
    )


RUNS = (
    Run(
        "base",
        "llama_cpt.train",
        f"configs/demo_base.py {_COMMON} --output base --data.prepared prepared "
        + _ORIGINAL.format("train"),
    ),
    _train("cpt", "base", "prepared", "train"),
    _train("sft", "cpt", "prepared_sft", "chats"),
    _train("dpo", "sft", "prepared_dpo", "preferences"),
    Run(
        "lora",
        "llama_cpt.train",
        "lora.json --output lora --init-from cpt",
        before=_write_lora_config,
    ),
    Run("sweep", "llama_cpt.sweep", "sweep.json", before=_write_sweep_config),
    Run(
        "law",
        "llama_cpt.fit_law",
        "law_runs.csv --output law --next 2",
        before=_write_law_table,
    ),
    Run("export", "llama_cpt.convert", "to-hf dpo exported --dtype float32"),
    Run("export_merged", "llama_cpt.convert", "to-hf lora exported_merged"),
    Run("export_adapters", "llama_cpt.convert", "to-hf lora exported_adapters --adapters"),
    Run(
        "evaluate",
        "llama_cpt.evaluate",
        "base exported --tasks bpb --heldout en=world/en.heldout.jsonl --limit 8 --output scores",
    ),
    Run(
        "chat",
        "llama_cpt.chat",
        "exported --temperature 0 --max-new-tokens 16",
        stdin=_QUESTION,
    ),
    Run(
        "plan",
        "llama_cpt.plan",
        "configs/demo_cpt.py --topology v5e-4 --model.head-dim 64 --json",
        stdout="plan.json",
    ),
)
