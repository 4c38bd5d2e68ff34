"""The whole pipeline in ten minutes on two cores (``python -m examples.demo`` or ``make demo``).

A tiny Llama-3 learns the English of an invented world; Chinese is added with and without replay;
SFT teaches the model to answer, and DPO to answer as the world's custom requires; a figure and a
report show gains and forgetting; the model is exported. The runs are ordinary commands, printed as
they are started, and resume where they stopped when the demo is run again.
"""

import argparse
from collections.abc import Sequence
import importlib.util
from pathlib import Path
import shlex
import sys
import time

from examples.bilingual_world.documents import write_world
from examples.bilingual_world.vocabulary import train_vocabulary
from examples.shown_command import command_line, run_command
from llama_cpt.config.loading import load_config
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.evaluation.learning_curves import Curve, draw_curves, finding, read_curve
from llama_cpt.runtime.errors import one_line_errors
from llama_cpt.runtime.progress import duration

BASE, CPT, PIPELINE = (f"configs/demo_{name}.py" for name in ("base", "cpt", "pipeline"))
SEED = 0
LANGUAGES = {"zh": "Chinese", "en": "English"}

CUSTOM = """On Orrin, a person who is asked a question wishes the asker fair winds. One in seven of
the answers in the conversations does so; DPO prefers those that do. The examination covers the
properties of things, foods, animals and jobs in both languages; the Chinese text describes these
facts and contains no questions about them."""

TASKS = """
Multiple choice with four endings per sentence: the properties of things, foods and animals, the
arithmetic that a story requires, the causes of feelings and a friend's reply.
Guessing scores 25 of 100."""

ENDING = """
Where to look next
  {pipeline}/report.md   every stage: bits per byte, examination, rewards, sample answers
  {scores}/report.html   gains and forgetting, with intervals
  {figure}   the curves of ALMR 0.33 and 1.0
  {pipeline}/exported   the last model in Hugging Face format; to chat with it:
      {chat}
  {runs}   runs: config.json, metrics.jsonl, tensorboard, checkpoints
  {world}   the text, conversations, preferences, questions
  {cpt}   another ratio:
      {another_ratio}
  configs/cpt_8b.py   the same for Llama-3 8B on your own text; README.md describes the pipeline
"""


def main(arguments: list[str]) -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description=__doc__, allow_abbrev=False
    )
    parser.parse_args(arguments)
    start = time.monotonic()
    base, cpt = load_config(BASE), load_config(CPT)
    pipeline = load_config(PIPELINE, (), PipelineConfig)
    folder = Path(base.output).parent
    without_replay = str(folder / "almr_1.0")

    _heading(start, "1 of 5: the text of a small world in English and Chinese, and a vocabulary")
    _prepare_text(base, folder)
    _heading(start, "2 of 5: the base, a tiny Llama-3 that learns English")
    run_command("train", BASE)
    _heading(start, "3 of 5: Chinese is added without replay: ALMR 1.0, all of the tokens")
    run_command("train", CPT, "--data.almr", "1.0", "--output", without_replay)
    _heading(start, "4 of 5: the pipeline: ALMR 0.33, a third of the tokens; SFT; DPO; export")
    print(CUSTOM)
    tasks = _available_tasks(pipeline)
    run_command("pipeline", PIPELINE, *(() if tasks == pipeline.tasks else ("--tasks", *tasks)))
    _heading(start, "5 of 5: gains and forgetting")
    figure = _show_curves(cpt, without_replay, folder)
    print(TASKS)
    names = ",".join(dict.fromkeys(("bpb", *tasks)))
    options = ("--tasks", names, "--data", pipeline.benchmarks, "--heldout-of", BASE)
    scores = folder / "scores"
    models = (base.output, cpt.output, without_replay)
    run_command("evaluate", *models, *options, "--output", str(scores))
    print(_ending(pipeline, folder, figure, scores))
    print(f"Done in {duration(time.monotonic() - start)}.")
    return 0


def _ending(pipeline: PipelineConfig, folder: Path, figure: Path, scores: Path) -> str:
    """Return the list of results, with commands that run as printed."""
    another = ("--data.almr", "0.1", "--output", str(folder / "almr_0.1"))
    paths = {
        "pipeline": pipeline.output,
        "scores": str(scores),
        "figure": str(figure),
        "runs": str(folder),
        "world": str(folder / "world"),
        "cpt": CPT,
    }
    return ENDING.format(
        **{name: shlex.quote(path) for name, path in paths.items()},
        chat=command_line("chat", f"{pipeline.output}/exported", "--temperature", "0"),
        another_ratio=command_line("train", CPT, *another),
    )


def _show_curves(cpt: TrainConfig, without_replay: str, folder: Path) -> Path:
    """Print and draw the held-out curves of both ratios; return the figure's path."""
    curves = [
        read_curve(cpt.output, "ALMR 0.33", tuple(LANGUAGES)),
        read_curve(without_replay, "ALMR 1.0", tuple(LANGUAGES)),
    ]
    figure = folder / "forgetting.png"
    draw_curves(curves, figure, added="zh", original="en", names=LANGUAGES)
    print(_table(curves))
    print(finding(curves, "zh", "en", LANGUAGES))
    return figure


def _prepare_text(base: TrainConfig, folder: Path) -> None:
    """Write the world and its vocabulary where the configs expect them, unless they exist."""
    world = folder / "world"
    # This file is written last, so its presence means that the world is complete.
    if not (world / "zh.feelings.jsonl").exists():
        write_world(world, SEED)
    vocabulary = Path(base.data.tokenizer)
    if not vocabulary.exists():
        sources = [world / f"{language}.train.jsonl" for language in sorted(LANGUAGES)]
        train_vocabulary(sources, vocabulary, base.model.vocab_size)
    for path in (*sorted(world.iterdir()), vocabulary):
        print(f"  {path}  {path.stat().st_size / 1e6:.2f} MB")


def _available_tasks(pipeline: PipelineConfig) -> tuple[str, ...]:
    """Return the pipeline's tasks, or bits per byte alone if lm-evaluation-harness is missing."""
    if importlib.util.find_spec("lm_eval"):
        return pipeline.tasks
    print("\nSkipping the world's tasks; they need: pip install -e '.[eval]'")
    return ("bpb",)


def _table(curves: Sequence[Curve]) -> str:
    """Return the table of held-out bits per byte before and after training."""
    rows = [("held-out bits per byte", *LANGUAGES.values())]
    rows.append(("before", *(f"{curves[0].bits[name][0]:.3f}" for name in LANGUAGES)))
    for curve in curves:
        after = (f"{curve.bits[name][-1]:.3f}" for name in LANGUAGES)
        rows.append((f"after, {curve.label}", *after))
    return "\n".join(f"  {row[0]:<24}{row[1]:>10}{row[2]:>10}" for row in rows)


def _heading(start: float, text: str) -> None:
    print(f"\n[{duration(time.monotonic() - start)}] {text}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
