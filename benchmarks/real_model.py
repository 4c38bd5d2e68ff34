"""Studies of continual pre-training on a real pretrained model, SmolLM2-135M.

    python -m benchmarks.real_model [--only NAME ...]

The command trains the runs in RUNS, exports each of them, and scores the exported models: bits per
byte, BLiMP (English), XCOPA and CMMLU (Chinese). The runs ``replay_self`` replay English text that
the model itself wrote, instead of public English text. The command prints the table of scores with
intervals, draws the curves of the long run, and fits the forgetting of English to its first 20 %.
If it is interrupted, start it again to resume. The text and the benchmarks are in the folder
``LLAMA_CPT_DATA`` (default ``../shared/data``). Everything takes several hours on two CPU cores;
``--only`` selects runs. The checkpoints of an exported run are removed, because each takes 1.6 GB.
"""

import argparse
from dataclasses import dataclass
import os
from pathlib import Path
import shutil
import sys

from jaxtyping import Float
import numpy as np
from scipy.optimize import curve_fit

from benchmarks.smollm2 import write_model
from configs.real_model.cpt import CORPUS, DATA, MODEL
from examples.shown_command import run_command
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.evaluation.learning_curves import draw_curves, read_curve
from llama_cpt.runtime.errors import one_line_errors

FOLDER = Path("runs/real_model")
CPU = {"JAX_PLATFORMS": "cpu"}
"""The environment of ``train``. The default malloc settings need the least memory."""
REPLAY = FOLDER / "replay"
"""Folder of the text that the model writes."""
REPLAY_TOKENS = 40_000
"""Number of tokens of this text, more than the English tokens of a run."""
LONG_STEPS = 500
"""Number of steps of the long run, ten times the number of the other runs."""
FITTED_SHARE = 0.2
"""Share of the long run whose evaluations the fit of forgetting reads."""
EVAL_DATA = ("--data", os.path.join(DATA, "eval"), "--shots", "0")
SCORES = {
    "bpb": ("--heldout-of", "configs/real_model/cpt.py", "--limit", "9"),
    # Ten pairs for each of the 67 paradigms of BLiMP, and two questions for each of the 67 subjects
    # of CMMLU. This model answers CMMLU by chance.
    "blimp": (*EVAL_DATA, "--limit", "670"),
    "xcopa_zh": (*EVAL_DATA, "--limit", "250"),
    "cmmlu": (*EVAL_DATA, "--limit", "134"),
}
"""The options of ``evaluate`` by task."""


@dataclass(frozen=True)
class StudyRun:
    """A run of the study: a config and the options that differ from it."""

    name: str
    options: tuple[str, ...] = ()
    config: str = "configs/real_model/cpt.py"


def _almr(value: str, *options: str, suffix: str = "") -> StudyRun:
    return StudyRun(f"almr_{value}{suffix}", ("--data.almr", value, *options))


def _language(name: str) -> StudyRun:
    """Return a run at ALMR 0.33 with another additional language, whose loss is also measured."""
    corpus = f"{CORPUS}/{name}/{name}"
    return StudyRun(
        f"language_{name}",
        (
            *("--data.additional.0.name", name),
            *("--data.additional.0.source", f"{corpus}.train-00000.jsonl.gz"),
            *("--data.heldout.0.name", name),
            *("--data.heldout.0.source", f"{corpus}.valid.jsonl.gz"),
        ),
    )


def _replay_self(*options: str, suffix: str = "") -> StudyRun:
    """Return a run at ALMR 0.33 whose English text was written by the model."""
    prepared = ("--data.prepared", f"{FOLDER}/prepared_replay")
    source = ("--data.original.0.source", f"{REPLAY}/*.jsonl")
    return StudyRun(f"replay_self{suffix}", (*source, *prepared, *options))


def _after(name: str, before: str) -> StudyRun:
    return StudyRun(
        f"long_{name}", ("--init-from", str(FOLDER / before)), f"configs/real_model/{name}.py"
    )


RATE = "--optimizer.peak-learning-rate"
LONG = (
    *("--num-steps", str(LONG_STEPS), "--evaluation.every-steps", "50"),
    *("--checkpoint.every-steps", "25"),
)
SEED_1 = ("--seed", "1")
RUNS = (
    *(_almr(value) for value in ("0.33", "1.0")),
    *(_almr(value, *SEED_1, suffix="-seed_1") for value in ("0.33", "1.0")),
    _replay_self(),
    _replay_self(*SEED_1, suffix="-seed_1"),
    *(_almr(value) for value in ("0", "0.25", "0.40", "0.67")),
    *(_almr("0.33", RATE, rate, suffix=f"-rate_{rate}") for rate in ("1e-4", "1e-3")),
    _language("es"),
    _language("ar"),
    StudyRun("long", LONG),
    _after("sft", "long"),
    _after("dpo", "long_sft"),
)
KEPT = ("long", "long_sft")
"""Runs whose checkpoints later runs read."""


def write_replay() -> None:
    """Write the English text of the runs ``replay_self``, unless this is done."""
    tokens = ("--tokens", str(REPLAY_TOKENS), "--language", "en")
    # SmolLM2 was pre-trained with this token between documents.
    start = ("--start-token", "<|endoftext|>")
    run_command("make_replay", MODEL, *tokens, *start, "--output", str(REPLAY), environment=CPU)


def train_and_export(run: StudyRun) -> str:
    """Train a run and export its model, unless this is done; return the folder of the model."""
    exported = FOLDER / "exported" / run.name
    if not (exported / "config.json").exists():
        output = FOLDER / run.name
        if run.name.startswith("replay_self"):
            write_replay()
        run_command("train", run.config, *run.options, "--output", str(output), environment=CPU)
        run_command("convert", "to-hf", str(output), str(exported), "--dtype", "float32")
        if run.name not in KEPT:
            shutil.rmtree(output / CHECKPOINTS_FOLDER)
    return str(exported)


def score(models: dict[str, str]) -> None:
    """Score all models and print the table of scores. Stored scores are not computed again."""
    named = [f"{name}={folder}" for name, folder in models.items()]
    for tasks, options in SCORES.items():
        output = ("--output", str(FOLDER / "scores"))
        run_command("evaluate", *named, "--tasks", tasks, *options, *output)


def forgetting(tokens: Float[np.ndarray, " n"], scale: float, power: float) -> np.ndarray:
    """Return the rise of the loss after ``tokens``: a power law with offset 0."""
    return scale * tokens**power


def describe_forgetting() -> str:
    """Draw the curves of the long run, and return how well its first part predicts its end."""
    curve = read_curve(str(FOLDER / "long"), "ALMR 0.33", ("zh", "en"))
    names = {"zh": "Chinese", "en": "English"}
    draw_curves([curve], FOLDER / "real_model.png", added="zh", original="en", names=names)
    rise = curve.bits["en"] - curve.bits["en"][0]
    millions = curve.tokens / 1e6
    early = (millions > 0) & (millions <= FITTED_SHARE * millions[-1])
    try:
        (scale, power), _ = curve_fit(forgetting, millions[early], rise[early], p0=(0.01, 0.5))
    except RuntimeError:
        return f"English after {millions[-1]:.2f} million tokens: no power law fits its start."
    predicted = forgetting(millions[-1:], scale, power)[0]
    return (
        f"English after {millions[-1]:.2f} million tokens: {rise[-1]:+.4f} bits per byte measured, "
        f"{predicted:+.4f} predicted by {scale:.4g} x tokens^{power:.3g} (tokens in millions), "
        f"fitted to the {early.sum()} evaluations of the first {FITTED_SHARE:.0%}"
    )


def main(arguments: list[str]) -> int:
    """Run the selected runs, or all, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_model",
        description="Train and score the runs of the study of a real model.",
    )
    names = [run.name for run in RUNS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    options = parser.parse_args(arguments)
    if not Path(MODEL).exists():
        Path(MODEL).parent.mkdir(parents=True, exist_ok=True)
        write_model(Path(MODEL), "bfloat16")
    models = {"base": MODEL}
    score(models)
    for run in RUNS:
        if run.name in options.only:
            models[run.name] = train_and_export(run)
            # Scored after each run, so that a stopped study has the scores of its finished runs.
            score({run.name: models[run.name]})
    score(models)
    if "long" in options.only:
        print(describe_forgetting())
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
