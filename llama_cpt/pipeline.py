"""The pipeline command: ``python -m llama_cpt.pipeline CONFIG``."""

import argparse
import os
import sys

from llama_cpt.config.loading import load_config
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.pipelines.run import describe_stages, run_pipeline
from llama_cpt.runtime.distributed import require_single_process
from llama_cpt.runtime.errors import one_line_errors


def main(arguments: list[str]) -> int:
    """Run the command with ``arguments`` and return its exit status."""
    # lm-evaluation-harness would show a progress bar for every part of a benchmark.
    os.environ.setdefault("TQDM_DISABLE", "1")
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.pipeline",
        description="Run continual pre-training, SFT, DPO and export in order, each from the "
        "result of the one before, and write one report. Finished work is not repeated: the "
        "same command resumes after a stop at any point.",
        epilog="A config defines `config = PipelineConfig(...)`. Every field is an option; `CONFIG "
        "--help` lists them, those of a stage by its index (`--stages.0.num-steps 100`). Exit "
        "status: 0 done, 75 stopped by SIGTERM and saved, 78 user error, 130 stopped by Ctrl-C "
        "and saved.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="?", help="the config of a pipeline, in Python or JSON")
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
