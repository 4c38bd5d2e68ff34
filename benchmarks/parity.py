"""A trained model's answers beside lm-evaluation-harness's Hugging Face backend, in float32.

    PYTHONPATH=. python benchmarks/parity.py runs/demo/road/exported runs/demo/world

Asks both the world's questions in both languages (log-likelihoods of all options), whole held-out
documents (rolling) and beginnings of them to be continued (greedily), and prints how far apart the
two are. ``make demo`` makes both folders.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
import numpy as np  # noqa: E402

from llama_cpt.config.schema import MeshConfig  # noqa: E402
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer  # noqa: E402
from llama_cpt.evaluation.benchmarks import load_benchmark  # noqa: E402
from llama_cpt.evaluation.harness import HarnessModel  # noqa: E402
from llama_cpt.evaluation.questions import make_questions  # noqa: E402
from llama_cpt.generation.chat_session import find_chat_template  # noqa: E402
from llama_cpt.generation.load_decoder import load_decoder  # noqa: E402
from llama_cpt.parallel.mesh import make_mesh  # noqa: E402
from llama_cpt.weights.source import open_source  # noqa: E402

LANGUAGES = ("en", "zh")
TASKS = tuple(f"world_{kind}_{of}" for kind in ("facts", "feelings") for of in LANGUAGES)


def ours(folder: str) -> HarnessModel:
    mesh = make_mesh(MeshConfig(1, -1, 1))
    decoder = load_decoder(folder, open_source(folder).architecture, mesh, "float32")
    tokenizer = load_tokenizer(folder)
    # Not to ask in it: it knows what ends an answer.
    return HarnessModel(decoder, tokenizer, mesh, find_chat_template(tokenizer))


def documents(world: str, count: int) -> list[str]:
    found = []
    for language in LANGUAGES:
        lines = (Path(world) / f"{language}.heldout.jsonl").read_text("utf-8").splitlines()
        found += [json.loads(line)["text"] for line in lines[:count]]
    return found


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, one, 0, ("parity", n, 1)) for n, one in enumerate(arguments)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="an exported model")
    parser.add_argument("world", help="the demo's world")
    parser.add_argument("--questions", type=int, default=100, help="of each task")
    parser.add_argument("--documents", type=int, default=20, help="of each language")
    options = parser.parse_args()
    pair = ours(options.folder), HFLM(options.folder, dtype="float32", device="cpu", batch_size=8)

    for task in TASKS:
        found = make_questions(
            load_benchmark(task, options.world, None), chat=None, limit=options.questions
        )
        asked = [instance for question in found for instance in question.instances]
        mine, theirs = (np.array([p for p, _ in one.loglikelihood(asked)]) for one in pair)
        same = np.mean(
            mine.reshape(len(found), -1).argmax(1) == theirs.reshape(len(found), -1).argmax(1)
        )
        print(
            f"{task}: {len(asked)} options, at most {abs(mine - theirs).max():.1e} nats apart, "
            f"{same:.0%} of choices the same"
        )
    texts = documents(options.world, options.documents)
    asked = requests("loglikelihood_rolling", [(text,) for text in texts])
    mine, theirs = (np.array(one.loglikelihood_rolling(asked)) for one in pair)
    apart = abs(mine / theirs - 1).max()
    print(
        f"rolling: {len(texts)} documents of {-theirs.mean():.0f} nats, at most {apart:.1e} apart"
    )
    settings = {"until": ["\n\n"], "max_gen_toks": 48, "do_sample": False}
    asked = requests("generate_until", [(text[:60], settings) for text in texts])
    mine, theirs = (one.generate_until(asked) for one in pair)
    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
    print(f"written: {same} of {len(texts)} continuations the same to the last character")


if __name__ == "__main__":
    main()
