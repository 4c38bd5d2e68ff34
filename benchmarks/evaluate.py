"""Questions a second beside lm-evaluation-harness's Hugging Face backend, on the same CPU.

PYTHONPATH=. python benchmarks/evaluate.py FOLDER --data ../shared/data/eval [--shots 5 0]

FOLDER is a Hugging Face folder. Both answer the same CMMLU questions in float32, in turn, each in
a process of its own; the first turn warms up (compilation). The ratio is of the medians. Time
includes making tokens of the questions, as both do.
"""

import argparse
import multiprocessing
from multiprocessing.connection import Connection
import os
import statistics
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import jax  # noqa: E402
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
import torch  # noqa: E402

from llama_cpt.config.schema import MeshConfig  # noqa: E402
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer  # noqa: E402
from llama_cpt.evaluation.benchmarks import load_benchmark  # noqa: E402
from llama_cpt.evaluation.harness import HarnessModel  # noqa: E402
from llama_cpt.evaluation.questions import make_questions  # noqa: E402
from llama_cpt.generation.load_decoder import load_decoder  # noqa: E402
from llama_cpt.parallel.mesh import make_mesh  # noqa: E402
from llama_cpt.weights.source import open_source  # noqa: E402

NAMES = ("llama_cpt", "harness")


def ours(folder: str) -> HarnessModel:
    config, mesh = open_source(folder).architecture, make_mesh(MeshConfig(1, -1, 1))
    decoder = load_decoder(folder, config, mesh, "float32")
    return HarnessModel(decoder, load_tokenizer(folder), mesh, None)


def theirs(options: argparse.Namespace) -> HFLM:
    torch.set_num_threads(options.threads)
    return HFLM(options.folder, dtype="float32", device="cpu", batch_size=options.batch_size)


def requests(options: argparse.Namespace, shots: int) -> list[Any]:
    """Of the first ``options.questions`` questions, subject by subject."""
    found = make_questions(load_benchmark("cmmlu", options.data, shots), chat=None, limit=None)
    chosen = found[: options.questions]
    return [instance for question in chosen for instance in question.instances]


def worker(pipe: Connection, name: str, shots: int, options: argparse.Namespace) -> None:
    """A pass over all questions for each message; what is sent back is its seconds."""
    model: LM = ours(options.folder) if name == "llama_cpt" else theirs(options)
    asked = requests(options, shots)
    while pipe.recv():
        start = time.perf_counter()
        found = model.loglikelihood(asked)
        pipe.send((time.perf_counter() - start, [logprob for logprob, _ in found]))


def measure(shots: int, options: argparse.Namespace) -> None:
    """Both in turn, and whether they agree."""
    context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for name in NAMES:
        pipes[name], far = context.Pipe()
        processes.append(context.Process(target=worker, args=(far, name, shots, options)))
        processes[-1].start()
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    scores = {}
    for turn in range(options.repeat + 1):
        for name in NAMES:
            pipes[name].send(True)
            taken, scores[name] = pipes[name].recv()
            if turn:
                seconds[name].append(taken)
    for name, process in zip(NAMES, processes, strict=True):
        pipes[name].send(False)
        process.join()
    apart = max(abs(a - b) for a, b in zip(*scores.values(), strict=True))
    rate = {name: options.questions / statistics.median(of) for name, of in seconds.items()}
    print(
        f"{shots} shots: {rate['llama_cpt']:.1f} questions/s, harness {rate['harness']:.1f}: "
        f"{rate['llama_cpt'] / rate['harness']:.2f} times; scores at most {apart:.1e} apart",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--data", default="../shared/data/eval")
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 0])
    parser.add_argument("--questions", type=int, default=201)
    parser.add_argument("--batch-size", type=int, default=16, help="the harness's")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, torch {torch.__version__}")
    for shots in options.shots:
        measure(shots, options)


if __name__ == "__main__":
    main()
