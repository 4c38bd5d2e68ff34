"""A short study with the whole method (``python -m examples.study`` or ``make study``).

The text describes an invented world in English, Chinese and Arabic. A tiny Llama 3 is trained on
English. One sweep over mixture ratio and learning rate adds Chinese, and a second one adds Arabic.
A law is fitted to all runs of both sweeps. The study then trains a run with the recommended ratio
and rate, and compares the predicted loss with the measured loss. The study prints each command
before it runs the command. After an interruption, run the study again to resume the commands.
"""

import argparse
from pathlib import Path
import shlex
import sys
import time

from examples.bilingual_world.documents import write_documents
from examples.bilingual_world.vocabulary import train_vocabulary
from examples.shown_command import command_line, run_command
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.evaluation.learning_curves import read_curve
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.law_file import load_law
from llama_cpt.runtime.errors import NEGATIVE_RESULT, one_line_errors
from llama_cpt.runtime.progress import duration

BASE, CPT, *SWEEPS = (
    f"configs/demo/study.py:{name}" for name in ("base", "cpt_ar", "sweep_zh", "sweep_ar")
)
LANGUAGES = ("en", "zh", "ar")
SEED, DOCUMENTS = 0, 4000

ENDING = """
Where to look next
  {law}/report.md   the law: contours, ridge, Pareto front, predictions, both language pairs
  {sweep}/results.csv   one line per run, evaluation and corpus (columns: docs/guide/law.md)
  configs/llama3/sweep_8b.py   the same for Llama 3 8B; to print its cost:
      {price}
  docs/notes/study.md   the same on real text, at three sizes
"""


def main(arguments: list[str]) -> int:
    """Run the study and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.study", description=__doc__, allow_abbrev=False
    )
    parser.parse_args(arguments)
    start = time.monotonic()
    base, cpt = load_config(BASE), load_config(CPT)
    sweeps = [load_config(config, (), SweepConfig) for config in SWEEPS]
    law = Path(base.output).parent / "law"
    _heading(start, "1 of 5: text about a small world in three languages, and a vocabulary")
    _prepare_text(base)
    _heading(start, "2 of 5: the base model, a tiny Llama 3 trained on English")
    run_command("train", BASE)
    _heading(start, "3 of 5: sweeps over ratio and learning rate, for Chinese and for Arabic")
    for config in SWEEPS:
        run_command("sweep", config)
    _heading(start, "4 of 5: the law")
    tables = [f"{sweep.output}/results.csv" for sweep in sweeps]
    status = run_command(
        "fit_law",
        *tables,
        "--output",
        str(law),
        "--config",
        CPT,
        "--next",
        "3",
        accepted=(NEGATIVE_RESULT,),
    )
    _heading(start, "5 of 5: a run with the recommended settings, compared with the prediction")
    if status == NEGATIVE_RESULT:
        print("The law makes no recommendation, for the reasons above, so nothing is trained.")
    else:
        run_command("train", str(law / "recommended.py"), "--output", cpt.output)
        print(_comparison(load_law(str(law / "law.json")), cpt))
    price = command_line("sweep", "configs/llama3/sweep_8b.py", "--dry-run")
    paths = (shlex.quote(str(path)) for path in (law, sweeps[0].output))
    print(ENDING.format(**dict(zip(("law", "sweep"), paths, strict=True)), price=price))
    print(f"Done in {duration(time.monotonic() - start)}.")
    return 0


def _prepare_text(base: TrainConfig) -> None:
    """Write the documents and the vocabulary at the paths in the configs, unless they exist."""
    vocabulary = Path(base.data.tokenizer)
    world = vocabulary.parent / "world"
    if not vocabulary.exists():
        write_documents(world, SEED, codes=LANGUAGES, documents=DOCUMENTS)
        sources = [world / f"{code}.train.jsonl" for code in LANGUAGES]
        train_vocabulary(sources, vocabulary, base.architecture.vocab_size)
    for path in (*sorted(world.iterdir()), vocabulary):
        print(f"  {path}  {path.stat().st_size / 1e6:.2f} MB")


def _comparison(law: Law, cpt: TrainConfig) -> str:
    """Return a table of predicted and measured bits per byte of the recommended run."""
    assert law.recommendation
    additional, original = (group[0].name for group in (cpt.data.additional, cpt.data.original))
    curve = read_curve(cpt.output, "recommended", (additional, original))
    lines = [f"  {'held-out bits per byte':<24}{'predicted':>10}{'90 %':>18}{'measured':>10}"]
    for group, corpus in (("additional", additional), ("original", original)):
        predicted = law.recommendation.losses[group]
        measured = curve.bits[corpus][-1]
        interval = f"{predicted.low:.3f} to {predicted.high:.3f}"
        lines.append(f"  {group:<24}{predicted.value:>10.3f}{interval:>18}{measured:>10.3f}")
    return "\n".join(lines)


def _heading(start: float, text: str) -> None:
    print(f"\n[{duration(time.monotonic() - start)}] {text}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
