"""A trained model's scores, compared with lm-evaluation-harness's Hugging Face backend.

    python -m benchmarks.parity runs/demo/pipeline/exported runs/demo/world

The command computes in float32 and prints the largest differences. It compares the log-likelihoods
of all answer options of the demo's questions in both languages, the rolling log-likelihoods of
whole held-out documents, and greedy continuations of the documents' first 60 characters. ``make
demo`` writes both folders.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from lm_eval.api.instance import Instance, OutputType  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
import numpy as np  # noqa: E402

from llama_cpt.config.schema import MeshConfig  # noqa: E402
from llama_cpt.data.chat.template import find_chat_template  # noqa: E402
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer  # noqa: E402
from llama_cpt.evaluation.benchmarks import load_benchmark  # noqa: E402
from llama_cpt.evaluation.harness import HarnessModel  # noqa: E402
from llama_cpt.evaluation.questions import make_questions  # noqa: E402
from llama_cpt.generation.decoder import load_decoder  # noqa: E402
from llama_cpt.parallel.mesh import make_mesh  # noqa: E402
from llama_cpt.weights.source import open_source  # noqa: E402

LANGUAGES = ("en", "zh")
TASKS = tuple(f"world_{kind}_{of}" for kind in ("facts", "feelings") for of in LANGUAGES)


def ours(folder: str) -> HarnessModel:
    """Load the model with this package."""
    mesh = make_mesh(MeshConfig(1, -1, 1))
    decoder = load_decoder(folder, open_source(folder).architecture, mesh, "float32")
    tokenizer = load_tokenizer(folder)
    # Questions do not use the template; it defines the tokens that end an answer.
    return HarnessModel(decoder, tokenizer, mesh, find_chat_template(tokenizer))


def documents(world: str, count: int) -> list[str]:
    """Return the texts of the first ``count`` held-out documents per language."""
    found = []
    for language in LANGUAGES:
        lines = (Path(world) / f"{language}.heldout.jsonl").read_text("utf-8").split("\n")
        found += [json.loads(line)["text"] for line in lines[:count]]
    return found


def requests(kind: OutputType, arguments: list[tuple]) -> list[Instance]:
    """Return one request of the harness per entry of ``arguments``."""
    return [Instance(kind, {}, one, 0, ("parity", n, 1)) for n, one in enumerate(arguments)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of an exported model")
    parser.add_argument("world", help="folder of the demo's text and questions")
    parser.add_argument("--questions", type=int, default=100, help="questions per task")
    parser.add_argument("--documents", type=int, default=20, help="documents per language")
    options = parser.parse_args()
    backend: Any = HFLM
    harness = backend(options.folder, dtype="float32", device="cpu", batch_size=8)
    pair = ours(options.folder), harness

    for task in TASKS:
        found = make_questions(
            load_benchmark(task, options.world, None), chat=None, limit=options.questions
        )
        instances = [instance for question in found for instance in question.instances]
        mine, theirs = (np.array([p for p, _ in one.loglikelihood(instances)]) for one in pair)
        same = np.mean(
            mine.reshape(len(found), -1).argmax(1) == theirs.reshape(len(found), -1).argmax(1)
        )
        print(
            f"{task}: {len(instances)} options differ by at most "
            f"{abs(mine - theirs).max():.1e} nats, {same:.0%} of the choices are equal"
        )
    texts = documents(options.world, options.documents)
    instances = requests("loglikelihood_rolling", [(text,) for text in texts])
    mine, theirs = (np.array(one.loglikelihood_rolling(instances)) for one in pair)
    difference = abs(mine / theirs - 1).max()
    print(
        f"rolling: {len(texts)} documents of {-theirs.mean():.0f} nats differ by at most "
        f"{difference:.1e} of their value"
    )
    settings = {"until": ["\n\n"], "max_gen_toks": 48, "do_sample": False}
    instances = requests("generate_until", [(text[:60], settings) for text in texts])
    mine, theirs = (one.generate_until(instances) for one in pair)
    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
    print(f"generated: {same} of {len(texts)} continuations are equal")


if __name__ == "__main__":
    main()
