"""A check that two checkouts compute the same numbers, to the last bit.

    python -m benchmarks.equivalence run TREE OUTPUT
    python -m benchmarks.equivalence compare REFERENCE OTHER
    python -m benchmarks.equivalence check REFERENCE_TREE OTHER_TREE OUTPUT

TREE is a checkout of this repository. ``run`` executes the runs of ``equivalence_runs.py`` with the
code of TREE, and writes their files to OUTPUT, a new folder. ``compare`` compares two outputs and
prints one line per artifact, which is a file or a checkpoint. All numbers, token rows, weights and
generated tokens must be equal. Prose, pictures and wall-clock values are exempt, for the reasons
given in ``output_facts.py``. ``check`` runs both trees, with outputs OUTPUT/reference and
OUTPUT/other, and compares the outputs.

If names have changed, ``benchmarks/renames.csv`` in TREE lists the old and the new names. ``run``
uses TREE's names in the commands, and ``compare`` maps the reference's names to the other tree's
names.

``run`` takes three and a half minutes of CPU time and 80 MB of disk space.

Exit status: 0 if equal, 65 if different, 1 if a run failed, 2 if the command line is wrong.
"""

import argparse
from itertools import zip_longest
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.equivalence_runs import RUNS, Run, world_program
from benchmarks.output_facts import Facts, Reader, exempt_keys
from benchmarks.renames import FILE, Renames, read_renames

DIFFERENT = 65
ABOUT, RESULTS, LOGS = "about.json", "results", "logs"
# With these settings, libtpu only compiles, and does not search for a TPU or a metadata server.
_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}


def run(tree: Path, output: Path) -> None:
    """Execute all runs with the code of ``tree``.

    Raises ValueError if ``output`` is not empty or if Python imports different code, and
    RuntimeError if a run fails.
    """
    tree, output = tree.resolve(), output.resolve()
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; name a new folder.")
    renames = read_renames(tree / FILE)
    for name in (RESULTS, LOGS):
        (output / name).mkdir(parents=True, exist_ok=True)
    if (tree / FILE).exists():
        shutil.copy(tree / FILE, output / FILE.name)
    _require_own_code(tree, output)
    seconds = {
        "world": _execute(Run("world", "", ""), ["-c", world_program(renames)], tree, output)
    }
    for one in RUNS:
        if one.before:
            one.before(output / RESULTS, renames)
        seconds[one.name] = _execute(one, one.command(tree, renames), tree, output)
    about = {"tree": str(tree), "results": str(output / RESULTS), "seconds": seconds}
    # Written last, because the file marks the output as complete.
    (output / ABOUT).write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def compare(reference: Path, other: Path) -> bool:
    """Print one line per artifact, and return whether all artifacts are equal."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    renames = read_renames(other / FILE.name)
    left = _reader(reference, renames, exempt_keys(Renames()) | exempt_keys(renames))
    right = _reader(other, Renames(), left.exempt)
    mine, theirs = left.artifacts(), right.artifacts()
    differing = 0
    for name in sorted(mine.keys() | theirs.keys()):
        if name in mine and name in theirs:
            same, text = _verdict(left.facts(mine[name]), right.facts(theirs[name]))
        else:
            same, text = False, f"only in {reference if name in mine else other}"
        differing += not same
        print(f"{'equal  ' if same else 'DIFFERS'}  {name}: {text}", flush=True)
    print(f"{len(mine.keys() | theirs.keys())} artifacts, {differing} differ")
    return bool(mine) and not differing


def first_difference(name: str, mine: Any, theirs: Any) -> str:
    """Return the first difference between two values as text; '' if all bits are equal.

    The text starts with ``name``.
    """
    if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
        return _array_difference(name, mine, theirs)
    if isinstance(mine, bytes) and isinstance(theirs, bytes):
        if mine == theirs:
            return ""
        pairs = enumerate(zip_longest(mine, theirs))
        at, (a, b) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
        return f"{name}: byte {at} of {len(mine)} and {len(theirs)}: {a} != {b}"
    # A comparison as JSON distinguishes 1, 1.0 and true, and NaN equals NaN.
    return "" if _text(mine) == _text(theirs) else f"{name}: {_text(mine)} != {_text(theirs)}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


def _array_difference(name: str, mine: np.ndarray, theirs: np.ndarray) -> str:
    if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
        return f"{name}: {mine.dtype}{mine.shape} != {theirs.dtype}{theirs.shape}"
    if mine.tobytes() == theirs.tobytes():
        return ""
    # A comparison of bytes distinguishes -0.0 and 0.0, and NaN equals NaN.
    as_bytes = [np.ascontiguousarray(one).reshape(-1, 1).view(np.uint8) for one in (mine, theirs)]
    differing = np.flatnonzero((as_bytes[0] != as_bytes[1]).any(axis=1))
    index = tuple(int(i) for i in np.unravel_index(differing[0], mine.shape))
    values = f"{mine[index]!r} != {theirs[index]!r}"
    return f"{name}: {len(differing)} of {mine.size} values, first at {list(index)}: {values}"


def _verdict(mine: Facts, theirs: Facts) -> tuple[bool, str]:
    found = [
        f"{name}: only in the {'reference' if name in mine else 'other'}"
        if name not in mine or name not in theirs
        else first_difference(name, mine[name], theirs[name])
        for name in [*mine, *(name for name in theirs if name not in mine)]
    ]
    differences = [text for text in found if text]
    if not found:
        return False, "has no values to compare"
    if differences:
        return False, f"{len(differences)} of {len(found)} values differ; {differences[0]}"
    return True, f"{len(found)} values"


def _reader(output: Path, renames: Renames, exempt: frozenset[str]) -> Reader:
    if not (output / ABOUT).exists():
        raise ValueError(f"{output} has no {ABOUT}, so its runs are incomplete; repeat `run`.")
    about = json.loads((output / ABOUT).read_text("utf-8"))
    paths = ((about["results"], "RESULTS"), (about["tree"], "TREE"))
    return Reader(output / RESULTS, renames, exempt, paths)


def _execute(one: Run, arguments: list[str], tree: Path, output: Path) -> float:
    """Execute one run, and return its duration in seconds. Raises RuntimeError if it fails."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=output / RESULTS,
        env=_environment(tree, output),
        input=one.stdin,
        capture_output=True,
        text=True,
    )
    log = output / LOGS / f"{one.name}.log"
    log.write_text(f"{done.stdout}\n{done.stderr}", "utf-8")
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"{one.name}: exit status {done.returncode}: {' '.join(last)} ({log})")
    if one.stdout:
        (output / RESULTS / one.stdout).write_text(done.stdout, "utf-8")
    seconds = round(time.monotonic() - start, 1)
    print(f"{one.name}: {seconds} s", flush=True)
    return seconds


def _environment(tree: Path, output: Path) -> dict[str, str]:
    """Return the environment of a run.

    Settings of the caller that affect XLA's compilation are removed. The runs of one output share a
    compilation cache, which saves a third of the time. Different outputs do not share a cache.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "LIBTPU_"))}
    cache = {"JAX_COMPILATION_CACHE_DIR": str(output / "compiled")}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return kept | _TPU | cache | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}


def _require_own_code(tree: Path, output: Path) -> None:
    """Raise ValueError if the runs would import an installed package instead of ``tree``."""
    program = "import llama_cpt; print(llama_cpt.__path__[0])"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=output / RESULTS,
        env=_environment(tree, output),
        capture_output=True,
        text=True,
    ).stdout.strip()
    if Path(found).resolve().parent != tree:
        raise ValueError(
            f"{tree}: Python imports llama_cpt from {found or 'nowhere'}; uninstall that package, "
            "or name a checkout."
        )


def main(arguments: list[str]) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.equivalence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, names in {
        "run": ("tree", "output"),
        "compare": ("reference", "other"),
        "check": ("reference", "other", "output"),
    }.items():
        one = commands.add_parser(command)
        for name in names:
            one.add_argument(name, type=Path)
    options = parser.parse_args(arguments)
    if options.command == "run":
        run(options.tree, options.output)
        return 0
    if options.command == "check":
        for name in ("reference", "other"):
            run(getattr(options, name), options.output / name)
        options.reference, options.other = options.output / "reference", options.output / "other"
    return 0 if compare(options.reference, options.other) else DIFFERENT


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
