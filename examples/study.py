"""The whole method in minutes on two cores: ``python -m examples.study``, or ``make study``.

On an invented world told in English, Chinese and Arabic: a tiny Llama-3 learns English; both other
languages are swept over ratio and learning rate; a law is fitted to all of it; its recommendation
is trained, and what it predicted is held against what came. The runs are ordinary commands, printed
as they are started, and go on where they stopped when the study is run again.
"""

import argparse
from pathlib import Path
import sys
import time

from examples.bilingual_world.documents import write_documents
from examples.bilingual_world.vocabulary import train_vocabulary
from examples.shown_command import run_command
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.evaluation.learning_curves import read_curve
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.law_file import load_law as load_law
from llama_cpt.runtime.errors import NEGATIVE_RESULT, one_line_errors
from llama_cpt.runtime.progress import duration

BASE, CPT, *SWEEPS = (f"configs/world_study_{name}.py" for name in ("base", "cpt", "zh", "ar"))
LANGUAGES = ("en", "zh", "ar")
SEED, DOCUMENTS = 0, 4000

ENDING = """
Where to look next
  {law}/report.md   the law: contours, ridge, Pareto front, what it predicts, both pairs
  {sweep}/results.csv   every run, evaluation and corpus; columns: docs/guide/law.md
  configs/sweep_8b.py   the same for Llama-3 8B: `python -m llama_cpt.sweep ... --dry-run` prices it
  docs/notes/study.md   the same on real text, at three sizes
"""


def main(arguments: list[str]) -> int:
    """Run the study; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.study", description=__doc__, allow_abbrev=False
    )
    parser.parse_args(arguments)
    start = time.monotonic()
    base, cpt = load_config(BASE), load_config(CPT)
    sweeps = [load_config(config, (), SweepConfig) for config in SWEEPS]
    law = Path(base.output).parent / "law"
    _heading(start, "1 of 5: a small world, told in three languages, and a vocabulary for them")
    _prepare_text(base)
    _heading(start, "2 of 5: the base, a tiny Llama-3 that learns English")
    run_command("train", BASE)
    _heading(start, "3 of 5: every ratio at every learning rate, Chinese and Arabic")
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
    _heading(start, "5 of 5: what the law recommends, and what comes of it")
    if status == NEGATIVE_RESULT:
        print("The law recommends nothing, and says why: nothing is trained.")
    else:
        run_command("train", str(law / "recommended.py"), "--output", cpt.output)
        print(_comparison(load_law(str(law / "law.json")), cpt))
    print(ENDING.format(law=law, sweep=sweeps[0].output))
    print(f"Done in {duration(time.monotonic() - start)}.")
    return 0


def _prepare_text(base: TrainConfig) -> None:
    """Write the documents and their vocabulary where the configs look, unless they are there."""
    vocabulary = Path(base.data.tokenizer)
    world = vocabulary.parent / "world"
    if not vocabulary.exists():
        write_documents(world, SEED, codes=LANGUAGES, documents=DOCUMENTS)
        sources = [world / f"{code}.train.jsonl" for code in LANGUAGES]
        train_vocabulary(sources, vocabulary, base.model.vocab_size)
    for path in (*sorted(world.iterdir()), vocabulary):
        print(f"  {path}  {path.stat().st_size / 1e6:.2f} MB")


def _comparison(law: Law, cpt: TrainConfig) -> str:
    """Predicted and measured bits per byte of the recommended run."""
    additional, original = (group[0].name for group in (cpt.data.additional, cpt.data.original))
    curve = read_curve(cpt.output, "recommended", (additional, original))
    lines = [f"  {'held-out bits per byte':<24}{'predicted':>10}{'90 %':>18}{'measured':>10}"]
    for group, corpus in (("additional", additional), ("original", original)):
        band = law.recommendation.losses[group]
        measured = curve.bits[corpus][-1]
        interval = f"{band.low:.3f} to {band.high:.3f}"
        lines.append(f"  {group:<24}{band.value:>10.3f}{interval:>18}{measured:>10.3f}")
    return "\n".join(lines)


def _heading(start: float, text: str) -> None:
    print(f"\n[{duration(time.monotonic() - start)}] {text}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
