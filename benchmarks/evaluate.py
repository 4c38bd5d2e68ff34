"""Questions per second, next to lm-evaluation-harness's Hugging Face backend on the same CPU.

    python -m benchmarks.evaluate FOLDER --data ../shared/data/eval [--shots 5 0]

FOLDER is a Hugging Face folder. Both answer the same CMMLU questions in float32, in turn, each in
its own process; the first turn, which compiles, is not counted. The ratio is that of the medians.
The time includes tokenizing the questions, which both do.
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
    """Return the model of this package."""
    config, mesh = open_source(folder).architecture, make_mesh(MeshConfig(1, -1, 1))
    decoder = load_decoder(folder, config, mesh, "float32")
    return HarnessModel(decoder, load_tokenizer(folder), mesh, None)


def theirs(options: argparse.Namespace) -> HFLM:
    """Return the Hugging Face backend of the harness."""
    torch.set_num_threads(options.threads)
    return HFLM(options.folder, dtype="float32", device="cpu", batch_size=options.batch_size)


def requests(options: argparse.Namespace, shots: int) -> list[Any]:
    """Return the requests of the first ``options.questions`` questions, in order of subjects."""
    found = make_questions(load_benchmark("cmmlu", options.data, shots), chat=None, limit=None)
    chosen = found[: options.questions]
    return [instance for question in chosen for instance in question.instances]


def worker(pipe: Connection, name: str, shots: int, options: argparse.Namespace) -> None:
    """Answer all questions per message received; send the seconds and the scores back."""
    model: LM = ours(options.folder) if name == "llama_cpt" else theirs(options)
    instances = requests(options, shots)
    while pipe.recv():
        start = time.perf_counter()
        found = model.loglikelihood(instances)
        pipe.send((time.perf_counter() - start, [logprob for logprob, _ in found]))


def measure(shots: int, options: argparse.Namespace) -> None:
    """Measure both in turn and print their rates and the largest difference of scores."""
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
    difference = max(abs(a - b) for a, b in zip(*scores.values(), strict=True))
    rate = {name: options.questions / statistics.median(times) for name, times in seconds.items()}
    print(
        f"{shots} shots: {rate['llama_cpt']:.1f} questions/s, harness {rate['harness']:.1f}: "
        f"ratio {rate['llama_cpt'] / rate['harness']:.2f}; scores differ by at most "
        f"{difference:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--data", default="../shared/data/eval")
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 0])
    parser.add_argument("--questions", type=int, default=201)
    parser.add_argument("--batch-size", type=int, default=16, help="batch size of the harness")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, torch {torch.__version__}")
    for shots in options.shots:
        measure(shots, options)


if __name__ == "__main__":
    main()
