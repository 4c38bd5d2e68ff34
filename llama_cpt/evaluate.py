"""The command that compares models: ``python -m llama_cpt.evaluate MODEL [MODEL ...]``."""

import argparse
import importlib.util
import math
import os
from pathlib import Path
import sys

import jax

from llama_cpt.chat_session import chat_template_of
from llama_cpt.config import MeshConfig
from llama_cpt.data.tokenizer import load_tokenizer
from llama_cpt.errors import UserError, one_line_errors
from llama_cpt.folders import require_writable
from llama_cpt.model.load import model_config_of, tokenizer_of
from llama_cpt.model.load_decoder import load_decoder
from llama_cpt.sharding import make_mesh
from llama_cpt.training.reference import model_identity


def main(arguments: list[str]) -> int:
    """Evaluate each model on each task; the exit status."""
    options = _parse(arguments)
    # The harness shows a bar for every part of a benchmark.
    os.environ.setdefault("TQDM_DISABLE", "1")
    require_writable(options.output)
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    _require_harness()
    from llama_cpt.evaluation.benchmarks import check_name, load_benchmark
    from llama_cpt.evaluation.harness_model import HarnessModel
    from llama_cpt.evaluation.questions import ask, questions_of

    for name in names:
        check_name(name, options.data)
    benchmarks = [load_benchmark(name, options.data, options.shots) for name in names]
    for label, source in _models(options.models).items():
        folder = Path(options.output) / label
        config = model_config_of(source)
        tokenizer = load_tokenizer(options.tokenizer or tokenizer_of(source))
        tokenizer.require_size(config.vocab_size)
        mesh = make_mesh(MeshConfig(1, -1, math.gcd(jax.device_count(), config.num_kv_heads)))
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        decoder = load_decoder(source, config, mesh, dtype)
        model = HarnessModel(decoder, tokenizer, mesh, chat_template_of(tokenizer))
        settings = {
            "model": model_identity(source, config, 0)[:16],
            "tokenizer": tokenizer.fingerprint[:16],
            "dtype": dtype,
        }
        for benchmark in benchmarks:
            questions = questions_of(
                benchmark, model, chat_template=options.chat_template, limit=options.limit
            )
            ask(questions, model, folder, settings)
    return 0


def _models(given: list[str]) -> dict[str, str]:
    """Name -> place of each model; ``NAME=PLACE`` where the folder's own name will not do."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, place = one.partition("=")
        if not equals:
            name, place = Path(one).resolve().name, one
        if name in found:
            raise UserError(f"two models are called {name}: tell them apart as NAME={place}.")
        found[name] = place
    return found


def _require_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("benchmarks need lm-evaluation-harness: pip install 'llama-cpt[eval]'.")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.evaluate",
        description="Compare models over languages and benchmarks, example by example.",
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder, or NAME=FOLDER")
    parser.add_argument("--tasks", required=True, metavar="NAME,...")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--data", default="", metavar="DIR")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--shots", type=int, default=None)
    parser.add_argument("--chat-template", action="store_true")
    parser.add_argument("--tokenizer", default="")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
