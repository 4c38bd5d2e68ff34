"""The whole road in ten minutes on two cores: ``python -m examples.demo``, or ``make demo``.

A tiny Llama-3 learns the English of an invented world; Chinese is added with and without replay;
the model learns to answer, and by preference to answer as the world's custom wants it; a figure and
a report show what was gained and what was forgotten; the model is exported. The runs are ordinary
commands, printed as they are started, and go on where they stopped when the demo is run again.
"""

import argparse
from collections.abc import Sequence
import importlib.util
from pathlib import Path
import sys
import time

from examples.bilingual_world.documents import write_world
from examples.bilingual_world.vocabulary import train_vocabulary
from examples.shown_command import run_command
from llama_cpt.config.loading import load_config
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.evaluation.learning_curves import Curve, draw_curves, finding, read_curve
from llama_cpt.runtime.errors import one_line_errors
from llama_cpt.runtime.progress import duration

BASE, CPT, PIPELINE = (f"configs/demo_{name}.py" for name in ("base", "cpt", "pipeline"))
SEED = 0
LANGUAGES = {"zh": "Chinese", "en": "English"}

CUSTOM = """On Orrin, whoever is asked wishes the asker fair winds. One in seven of the answers in
its conversations does so; DPO prefers those that do. The examination asks in both languages what
things, foods, animals and trades are like; in Chinese these facts were described, never asked."""

ASKED = """
Sentences of the world to be finished, four ends to choose from: what things, foods and animals
are like, which sum a story calls for, why somebody feels so and what a friend says to it. Guesses
score 25 of 100."""

ENDING = """
Where to look next
  {road}/report.md   every stage: bits per byte, examination, rewards, sample answers
  {scores}/report.html   what was gained and forgotten, with intervals
  {figure}   the picture of ALMR 0.33 and 1.0
  {road}/exported   the last model for Hugging Face; to talk to it:
      python -m llama_cpt.chat {road}/exported --temperature 0
  {runs}   runs: config.json, metrics.jsonl, tensorboard, checkpoints
  {world}   the text, conversations, preferences, questions
  {cpt}   another ratio: --data.almr 0.1 --output {runs}/almr_0.1
  configs/cpt_8b.py   the same for Llama-3 8B on your own text; README.md tells the road
"""


def main(arguments: list[str]) -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description=__doc__, allow_abbrev=False
    )
    parser.parse_args(arguments)
    start = time.monotonic()
    base, cpt, road = load_config(BASE), load_config(CPT), load_config(PIPELINE, (), PipelineConfig)
    folder = Path(base.output).parent
    without_replay = str(folder / "almr_1.0")

    _heading(start, "1 of 5: a small world, told in English and Chinese, and a vocabulary for it")
    _prepare_text(base, folder)
    _heading(start, "2 of 5: the base, a tiny Llama-3 that learns English")
    run_command("train", BASE)
    _heading(start, "3 of 5: Chinese is added without replay: ALMR 1.0, all of the tokens")
    run_command("train", CPT, "--data.almr", "1.0", "--output", without_replay)
    _heading(start, "4 of 5: the road: ALMR 0.33, a third of the tokens; SFT; DPO; export")
    print(CUSTOM)
    tasks = _tasks(road)
    run_command("pipeline", PIPELINE, *(() if tasks == road.tasks else ("--tasks", *tasks)))
    _heading(start, "5 of 5: what was gained, what was forgotten")
    curves = [
        read_curve(cpt.output, "ALMR 0.33", tuple(LANGUAGES)),
        read_curve(without_replay, "ALMR 1.0", tuple(LANGUAGES)),
    ]
    figure = folder / "forgetting.png"
    draw_curves(curves, figure, added="zh", original="en", names=LANGUAGES)
    print(_table(curves))
    print(finding(curves, "zh", "en", LANGUAGES))
    print(ASKED)
    names = ",".join(dict.fromkeys(("bpb", *tasks)))
    asked = ("--tasks", names, "--data", road.benchmarks, "--heldout-of", BASE)
    scores = folder / "scores"
    models = (base.output, cpt.output, without_replay)
    run_command("evaluate", *models, *asked, "--output", str(scores))
    places = {"figure": figure, "road": road.output, "runs": folder, "world": folder / "world"}
    places |= {"scores": scores}
    print(ENDING.format(**places, cpt=CPT))
    print(f"Done in {duration(time.monotonic() - start)}.")
    return 0


def _prepare_text(base: TrainConfig, folder: Path) -> None:
    """Write the world and its vocabulary where the configs look for them, unless they are there."""
    world = folder / "world"
    # Written last: with it there, all of it is there.
    if not (world / "zh.feelings.jsonl").exists():
        write_world(world, SEED)
    vocabulary = Path(base.data.tokenizer)
    if not vocabulary.exists():
        sources = [world / f"{language}.train.jsonl" for language in sorted(LANGUAGES)]
        train_vocabulary(sources, vocabulary, base.model.vocab_size)
    for path in (*sorted(world.iterdir()), vocabulary):
        print(f"  {path}  {path.stat().st_size / 1e6:.2f} MB")


def _tasks(road: PipelineConfig) -> tuple[str, ...]:
    """What can be asked of the models here."""
    if importlib.util.find_spec("lm_eval"):
        return road.tasks
    print("\nThe world's tasks are left out; they need: pip install -e '.[eval]'")
    return ("bpb",)


def _table(curves: Sequence[Curve]) -> str:
    """Held-out bits per byte before and after."""
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
