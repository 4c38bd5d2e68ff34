"""The command of the whole road: ``python -m llama_cpt.pipeline CONFIG``."""

import argparse
import os
import sys

from llama_cpt.config.loading import load_config
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.pipelines.run import describe_stages, run_pipeline
from llama_cpt.runtime.distributed import require_single_process
from llama_cpt.runtime.errors import one_line_errors


def main(arguments: list[str]) -> int:
    """Parse, travel; the exit status."""
    # The harness shows a bar for every part of a benchmark.
    os.environ.setdefault("TQDM_DISABLE", "1")
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.pipeline",
        description="Continual pre-training, SFT, DPO and export one after the other, each from "
        "the last, with one report over all of them. What is done is not done again: stop it at "
        "any point and give the same command.",
        epilog="A config defines `config = PipelineConfig(...)`; every field is an option: `CONFIG "
        "--help` lists them, a stage's by its place (`--stages.0.num-steps 100`). Exit status: 0 "
        "done, 75 stopped by SIGTERM and saved, 78 user error, 130 stopped by Ctrl-C and "
        "saved.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="?", help="a pipeline's config, in Python or JSON")
    options, overrides = parser.parse_known_args(arguments)
    if options.config is None or {"-h", "--help"} & set(overrides):
        parser.print_help()
        if options.config is None:
            return 0
    require_single_process("pipeline")
    config = load_config(options.config, overrides, PipelineConfig)
    print(f"{config.output}: {len(config.stages)} stages\n{describe_stages(config)}", flush=True)
    return run_pipeline(config).value


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
