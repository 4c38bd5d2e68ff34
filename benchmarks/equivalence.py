"""A check that two trees compute the same numbers, to the last bit.

    python -m benchmarks.equivalence run TREE OUTPUT
    python -m benchmarks.equivalence compare REFERENCE OTHER
    python -m benchmarks.equivalence check REFERENCE_TREE OTHER_TREE OUTPUT

``run`` executes the runs of ``equivalence_runs.py`` with the code of TREE, a checkout, and keeps
their files in OUTPUT, a new folder. ``compare`` prints one line per artifact of two outputs:
every number, token row, weight and generated token must be equal. Prose, pictures and wall-clock
values are exempt; ``output_facts.py`` lists them with reasons. ``check`` runs both trees into
OUTPUT/reference and OUTPUT/other and compares them.

A tree's own ``benchmarks/renames.csv`` translates names: the runs' commands into those of the
tree, and the reference's names into those of the other tree.

``run`` takes three and a half minutes of CPU time and 80 MB.

Exit status: 0 equal, 65 different, 1 a run failed, 2 the command line is wrong.
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
# libtpu only compiles: it neither searches for a TPU nor queries a metadata server.
_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}


def run(tree: Path, output: Path) -> None:
    """Execute all runs of ``tree``. Raises ValueError or RuntimeError with the reason."""
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
    # Written last: an output without it is incomplete.
    (output / ABOUT).write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def compare(reference: Path, other: Path) -> bool:
    """Print one line per artifact and return whether all of them are equal."""
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
    """Return how two values of one name differ; empty if they are equal to the last bit."""
    if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
        return _array_difference(name, mine, theirs)
    if isinstance(mine, bytes) and isinstance(theirs, bytes):
        if mine == theirs:
            return ""
        pairs = enumerate(zip_longest(mine, theirs))
        at, (a, b) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
        return f"{name}: byte {at} of {len(mine)} and {len(theirs)}: {a} != {b}"
    # As JSON: 1 is not 1.0 and not true, and NaN is NaN.
    return "" if _text(mine) == _text(theirs) else f"{name}: {_text(mine)} != {_text(theirs)}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


def _array_difference(name: str, mine: np.ndarray, theirs: np.ndarray) -> str:
    if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
        return f"{name}: {mine.dtype}{mine.shape} != {theirs.dtype}{theirs.shape}"
    if mine.tobytes() == theirs.tobytes():
        return ""
    # By bytes, so that -0.0 is not 0.0 and NaN equals itself.
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
        return False, "holds nothing to compare"
    if differences:
        return False, f"{len(differences)} of {len(found)} values differ; {differences[0]}"
    return True, f"{len(found)} values"


def _reader(output: Path, renames: Renames, exempt: frozenset[str]) -> Reader:
    if not (output / ABOUT).exists():
        raise ValueError(f"{output} has no {ABOUT}: its runs are not complete. Repeat `run`.")
    about = json.loads((output / ABOUT).read_text("utf-8"))
    paths = ((about["results"], "RESULTS"), (about["tree"], "TREE"))
    return Reader(output / RESULTS, renames, exempt, paths)


def _execute(one: Run, arguments: list[str], tree: Path, output: Path) -> float:
    """Execute one run and return its seconds. Raises RuntimeError if it fails."""
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
    """Return the caller's environment without settings that change what XLA compiles.

    The runs of one output share a compilation cache, which saves a third of the time; the runs of
    two outputs share nothing.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "LIBTPU_"))}
    cache = {"JAX_COMPILATION_CACHE_DIR": str(output / "compiled")}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return kept | _TPU | cache | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}


def _require_own_code(tree: Path, output: Path) -> None:
    """Validate that the runs import ``tree`` and not an installed package."""
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
    """Run the command and return the exit status."""
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
