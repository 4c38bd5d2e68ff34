"""The command that runs training stages and an export: ``python -m llama_cpt.pipeline CONFIG``."""

import os
import sys

from llama_cpt.config.loading import config_parser, load_config, parse_arguments
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.pipelines.run import describe_stages, run_pipeline
from llama_cpt.runtime.distributed import require_single_process
from llama_cpt.runtime.errors import one_line_errors
from llama_cpt.weights.initial_model import with_model


def main(arguments: list[str]) -> int:
    """Run the pipeline of the config named in ``arguments`` and return the exit status."""
    # Without this, lm-evaluation-harness shows a progress bar for each part of a benchmark.
    os.environ.setdefault("TQDM_DISABLE", "1")
    parser = config_parser(
        "pipeline",
        description="Run continual pre-training, SFT, DPO and export in order, each from the "
        "result of the previous stage, and write one report. Finished work is not repeated: the "
        "same command resumes after a stop at any point.",
        epilog="A config defines `config = PipelineConfig(...)`. Every field is an option; `CONFIG "
        "--help` lists them, those of a stage by its index (`--stages.0.num-steps 100`). Exit "
        "status: 0 done, 75 stopped by SIGTERM and saved, 78 user error, 130 stopped by Ctrl-C "
        "and saved.",
        config_help="the config of a pipeline, in Python or JSON",
    )
    options, overrides = parse_arguments(parser, arguments)
    require_single_process("pipeline")
    config = with_model(load_config(options.config, overrides, PipelineConfig))
    print(f"{config.output}: {len(config.stages)} stages\n{describe_stages(config)}", flush=True)
    return run_pipeline(config).value


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
