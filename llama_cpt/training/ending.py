"""The end of a run: its held-out losses before and after, and commands for the next steps."""

from collections.abc import Mapping, Sequence
import contextlib
from typing import Any

from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import has_evaluation
from llama_cpt.runtime.shown_command import command_line, new_shell
from llama_cpt.runtime.tables import aligned_table
from llama_cpt.weights.source import HfFolder, open_source


def describe_ending(config: TrainConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return text for a run that has ended; ``lines`` are the lines of its ``metrics.jsonl``."""
    return f"\n{heldout_changes(config, lines)}\n\n{next_commands(config)}"


def heldout_changes(config: TrainConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the held-out bits per byte before and after training, per corpus."""
    evaluated = [line for line in lines if has_evaluation(line)]
    if not evaluated:
        return (
            f"{config.output}: no held-out text, so what the model forgot is not known; set "
            "data.heldout."
        )
    first, last = evaluated[0], evaluated[-1]
    groups = {corpus.name: "original" for corpus in config.data.original}
    groups |= {corpus.name: "additional" for corpus in config.data.additional}
    before = "before" if first["step"] == 0 else f"after {first['step']:,} steps"
    after = f"after {last['step']:,} steps"
    rows: list[tuple[str, ...]] = [("held-out bits per byte", "group", before, after, "change")]
    for corpus in config.data.heldout:
        key = f"eval/{corpus.name}/bits_per_byte"
        old, new = first.get(key), last.get(key)
        change = f"{new / old - 1:+.2%}" if old and new else ""
        cells = ("" if value is None else f"{value:.4f}" for value in (old, new))
        rows.append((corpus.name, groups.get(corpus.name, ""), *cells, change))
    return aligned_table(rows, indent="")


def next_commands(config: TrainConfig) -> str:
    """Return commands that evaluate, export and chat with the model, for a new shell."""
    output = config.output.rstrip("/")
    base = (f"before={config.init_from}",) if config.init_from else ()
    scores = "scores" if "://" in output else f"{output}-scores"
    commands = [
        (
            "Export in Hugging Face's format",
            command_line("convert", "to-hf", output, f"{output}-hf"),
        ),
        ("Chat", command_line("chat", output)),
    ]
    if config.data.heldout:
        text = ("--heldout-of", f"{output}/config.json", "--output", scores)
        models = (*base, f"after={output}", *_tokenizer(config))
        evaluation = command_line("evaluate", *models, "--tasks", "bpb", *text)
        commands.insert(
            0, ("Evaluate on all held-out documents, or with --limit N on N per corpus", evaluation)
        )
    steps = "\n".join(f"{purpose}:\n  {command}" for purpose, command in commands)
    return f"Next steps, in a new shell:\n  {new_shell()}\n{steps}"


def _tokenizer(config: TrainConfig) -> tuple[str, ...]:
    """Return the option ``--tokenizer`` if the folder of the base model has no tokenizer."""
    source = open_source(config.init_from) if config.init_from else None
    if not isinstance(source, HfFolder):
        return ()
    with contextlib.suppress(UserError):
        if source.tokenizer:
            return ()
    return "--tokenizer", config.data.tokenizer
