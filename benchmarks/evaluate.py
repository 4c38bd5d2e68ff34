"""Questions per second, compared with lm-evaluation-harness's Hugging Face backend on a CPU.

    python -m benchmarks.evaluate FOLDER --data ../shared/data/eval [--shots 5 0]

FOLDER is a Hugging Face folder. Both programs score the same CMMLU questions in float32. Each
program runs in a separate process, and the programs take turns. The first turn is not counted,
because it includes compilation. The command prints the ratio of the median rates. The times include
the tokenization of the questions.
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
from llama_cpt.generation.decoder import load_decoder  # noqa: E402
from llama_cpt.parallel.mesh import make_mesh  # noqa: E402
from llama_cpt.weights.source import open_source  # noqa: E402

NAMES = ("llama_cpt", "harness")


def ours(folder: str) -> HarnessModel:
    """Load the model with this package."""
    config, mesh = open_source(folder).architecture, make_mesh(MeshConfig(1, -1, 1))
    decoder = load_decoder(folder, config, mesh, "float32")
    return HarnessModel(decoder, load_tokenizer(folder), mesh, None)


def theirs(options: argparse.Namespace) -> HFLM:
    """Load the model with the Hugging Face backend of lm-evaluation-harness."""
    torch.set_num_threads(options.threads)
    backend: Any = HFLM
    return backend(options.folder, dtype="float32", device="cpu", batch_size=options.batch_size)


def requests(options: argparse.Namespace, shots: int) -> list[Any]:
    """Return the requests of the first ``options.questions`` questions, ordered by subject."""
    found = make_questions(load_benchmark("cmmlu", options.data, shots), chat=None, limit=None)
    chosen = found[: options.questions]
    return [instance for question in chosen for instance in question.instances]


def worker(pipe: Connection, name: str, shots: int, options: argparse.Namespace) -> None:
    """Score all questions once per message received, and send the seconds and the scores."""
    model: LM = ours(options.folder) if name == "llama_cpt" else theirs(options)
    instances = requests(options, shots)
    while pipe.recv():
        start = time.perf_counter()
        found = model.loglikelihood(instances)
        pipe.send((time.perf_counter() - start, [logprob for logprob, _ in found]))


def measure(shots: int, options: argparse.Namespace) -> None:
    """Measure both programs in turn, and print their rates and the largest score difference."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
