"""The whole road in ten minutes on two cores: ``python -m llama_cpt.demo``, or ``make demo``.

A tiny Llama-3 learns the English of an invented world; Chinese is added with and without replay;
a figure shows what was gained and what was forgotten; the model is exported. The runs are ordinary
commands, printed as they are started, and go on where they stopped when the demo is run again.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from types import FrameType

from llama_cpt.bilingual_world.documents import write_world
from llama_cpt.bilingual_world.vocabulary import train_vocabulary
from llama_cpt.config import TrainConfig
from llama_cpt.config_file import load
from llama_cpt.errors import UserError, one_line_errors
from llama_cpt.evaluation.figure import Curve, draw_curves, finding, read_curve
from llama_cpt.progress import duration

BASE, CPT = "configs/demo_base.py", "configs/demo_cpt.py"
SEED = 0
LANGUAGES = {"zh": "Chinese", "en": "English"}

# The demo is sized for CPUs; an accelerator that others use is left alone. Without the rest, glibc
# gives every step's memory back, and the next step's page faults take a third of its time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}

ENDING = """
Where to look next
  {figure}   the picture of this table
  {exported}   the model with ALMR 0.33 for Hugging Face; with transformers and torch installed:
      AutoModelForCausalLM.from_pretrained("{exported}")
  {runs}   runs: config.json, metrics.jsonl, tensorboard, checkpoints
  {world}   the text, training and held out, and questions on it
  {cpt}   another ratio: --data.almr 0.1 --output {runs}/almr_0.1
  configs/cpt_8b.py   the same for Llama-3 8B on your own text; README.md tells the road
"""


def main(arguments: list[str]) -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.demo", description=__doc__, allow_abbrev=False
    )
    parser.parse_args(arguments)
    start = time.monotonic()
    base, cpt = load(BASE), load(CPT)
    folder = Path(base.output).parent
    without_replay = str(folder / "almr_1.0")
    exported = folder / "exported"

    _heading(start, "1 of 6: a small world, told in English and Chinese, and a vocabulary for it")
    _prepare_text(base, folder)
    _heading(start, "2 of 6: the base, a tiny Llama-3 that learns English")
    _command("train", BASE)
    _heading(start, "3 of 6: Chinese is added with replay: ALMR 0.33, a third of the tokens")
    _command("train", CPT)
    _heading(start, "4 of 6: the same number of tokens without replay: ALMR 1.0, all of them")
    _command("train", CPT, "--data.almr", "1.0", "--output", without_replay)
    _heading(start, "5 of 6: to Hugging Face's format")
    if (exported / "config.json").exists():
        print(f"{exported} is there already")
    else:
        _command("convert", "to-hf", cpt.output, str(exported), "--dtype", "float32")
    _heading(start, "6 of 6: what was gained, what was forgotten")
    curves = [
        read_curve(cpt.output, "ALMR 0.33", tuple(LANGUAGES)),
        read_curve(without_replay, "ALMR 1.0", tuple(LANGUAGES)),
    ]
    figure = folder / "forgetting.png"
    draw_curves(curves, figure, added="zh", original="en", names=LANGUAGES)
    print(_table(curves))
    print(finding(curves, "zh", "en", LANGUAGES))
    places = {"figure": figure, "exported": exported, "runs": folder, "world": folder / "world"}
    print(ENDING.format(**places, cpt=CPT))
    print(f"Done in {duration(time.monotonic() - start)}.")
    return 0


def _prepare_text(base: TrainConfig, folder: Path) -> None:
    """Write the world and its vocabulary where the configs look for them, unless they are there."""
    world = folder / "world"
    # Written last: with it there, all of it is there.
    if not (world / "questions.jsonl").exists():
        write_world(world, SEED)
    vocabulary = Path(base.data.tokenizer)
    if not vocabulary.exists():
        sources = [world / f"{language}.train.jsonl" for language in sorted(LANGUAGES)]
        train_vocabulary(sources, vocabulary, base.model.vocab_size)
    for path in (*sorted(world.iterdir()), vocabulary):
        print(f"  {path}  {path.stat().st_size / 1e6:.2f} MB")


def _command(name: str, *arguments: str) -> None:
    """Run one of the project's commands and show it; leave as it leaves if it does not finish.

    Ctrl-C and SIGTERM are the command's to obey, which may save first.
    """
    shown = " ".join((f"python -m llama_cpt.{name}", *arguments))
    environment = ENVIRONMENT | os.environ
    print(f"$ {shown}", flush=True)
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the command as well.
        if process and number == signal.SIGTERM:
            process.terminate()

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", f"llama_cpt.{name}", *arguments], env=environment
        )
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Below 0: by the signal itself, before the command had begun to heed it.
    if status in (75, 130, -signal.SIGINT, -signal.SIGTERM):
        print("Stopped; run the demo again to go on.", file=sys.stderr)
        raise SystemExit(status if status > 0 else 128 - status)
    if status:
        raise UserError(f"`{shown}` ended with status {status}; see above.")


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
