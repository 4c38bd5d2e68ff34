"""The whole pipeline in ten minutes on two cores (``python -m examples.demo`` or ``make demo``).

A tiny Llama 3 is trained on English text about an invented world. Continual pre-training adds
Chinese, once with and once without replay of English text. SFT teaches the model to answer
questions, and DPO teaches it to follow a custom of the world in its answers. A figure and a report
show gains and forgetting, and the last model is exported. The demo prints each command before it
runs the command. After an interruption, run the demo again to resume the commands.
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

BASE, CPT, PIPELINE = (f"configs/demo/{name}.py" for name in ("base", "cpt", "pipeline"))
SEED = 0
LANGUAGES = {"zh": "Chinese", "en": "English"}

CUSTOM = """On the island of Orrin, a person who answers a question wishes the asker fair winds.
About one in seven answers in the conversations includes this wish, and DPO prefers answers that
include it. The examination asks about the properties of things, foods, animals and jobs in both
languages. The Chinese conversations describe these properties but contain no questions about
them."""

TASKS = """
The tasks are multiple-choice questions with four endings each. They cover the properties of things,
foods, animals and jobs, the arithmetic that a story requires, the causes of feelings, and a
friend's reply. A random guess scores 25 of 100."""

ENDING = """
Where to look next
  {pipeline}/report.md   results of every stage: bits per byte, examination, rewards, sample answers
  {scores}/report.html   gains and forgetting, with intervals
  {figure}   held-out curves at ALMR 0.33 and 1.0
  {pipeline}/exported   the last model in Hugging Face format; to chat with it:
      {chat}
  {runs}   runs: config.json, metrics.jsonl, tensorboard, checkpoints
  {world}   the text, conversations, preferences, questions
  {cpt}   to train with a different ratio:
      {another_ratio}
  configs/llama3/cpt_8b.py   the same for Llama 3 8B on your own text (README.md)
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

    _heading(start, "1 of 5: text about a small world in English and Chinese, and a vocabulary")
    _prepare_text(base, folder)
    _heading(start, "2 of 5: the base model, a tiny Llama 3 trained on English")
    run_command("train", BASE)
    _heading(start, "3 of 5: CPT on Chinese without replay (ALMR 1.0: all tokens are Chinese)")
    run_command("train", CPT, "--data.almr", "1.0", "--output", without_replay)
    _heading(start, "4 of 5: the pipeline: CPT (ALMR 0.33: a third are Chinese), SFT, DPO, export")
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
    """Return a list of the result files, with commands that can be pasted into a shell."""
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
    """Print and draw the held-out curves of both ratios; return the path of the figure."""
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
    """Write the text and the vocabulary at the paths in the configs, unless they exist."""
    world = folder / "world"
    # This file is written last, so its presence means that the world is complete.
    if not (world / "zh.feelings.jsonl").exists():
        write_world(world, SEED)
    vocabulary = Path(base.data.tokenizer)
    if not vocabulary.exists():
        sources = [world / f"{language}.train.jsonl" for language in sorted(LANGUAGES)]
        train_vocabulary(sources, vocabulary, base.architecture.vocab_size)
    for path in (*sorted(world.iterdir()), vocabulary):
        print(f"  {path}  {path.stat().st_size / 1e6:.2f} MB")


def _available_tasks(pipeline: PipelineConfig) -> tuple[str, ...]:
    """Return the pipeline's tasks, or only bits per byte if lm-evaluation-harness is missing."""
    if importlib.util.find_spec("lm_eval"):
        return pipeline.tasks
    print("\nSkipping the multiple-choice tasks, which need: pip install -e '.[eval]'")
    return ("bpb",)


def _table(curves: Sequence[Curve]) -> str:
    """Return a table of held-out bits per byte before and after continual pre-training."""
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
