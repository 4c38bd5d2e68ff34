"""The command that reports on training runs: ``python -m llama_cpt.report RUN [RUN ...]``."""

import argparse
import sys

from etils import epath

from llama_cpt.evaluation.run_report.page import make_page, summary_rows
from llama_cpt.evaluation.run_report.records import read_run
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import one_line_errors
from llama_cpt.runtime.named_folders import named_folders
from llama_cpt.runtime.output_folder import check_local, check_writable
from llama_cpt.runtime.tables import aligned_table

DESCRIPTION = """Writes one HTML page on one or more training runs, which can still be running:
held-out bits per byte against tokens and compute, what was learned and forgotten, training loss per
corpus, target and realized mixture ratio, where the time went, and the differences of the
configs."""


def main(arguments: list[str]) -> int:
    """Write the page on the runs in ``arguments`` and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llama_cpt.report", description=DESCRIPTION)
    help_text = "folder of a run (local or gs://); the name in the page is the folder's by default"
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help=help_text)
    help_text = "the page to write (default: report.html)"
    parser.add_argument("--output", default="report.html", metavar="FILE", help=help_text)
    options = parser.parse_args(arguments)
    output = epath.Path(options.output)
    check_local("--output", options.output)
    check_writable(str(output.parent))
    runs = [read_run(*named) for named in named_folders(options.runs).items()]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, make_page(runs).encode())
    print(aligned_table(summary_rows(runs), indent=""))
    print(f"\n{output}")
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
