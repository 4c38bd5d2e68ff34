"""Generated tokens per second on a CPU, compared with ``generate`` of transformers.

    python -m benchmarks.generate [--embed 512 --layers 8 ...]

Both programs decode greedily in float32, with the same architecture, prompts and number of threads,
for one row and for eight rows. Each program runs in a separate process. The programs take turns, so
background load affects both. The command prints the ratio of the median rates. The times include
the prefill.
"""

import argparse
from collections.abc import Callable
import multiprocessing
from multiprocessing.connection import Connection
import os
import statistics
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from llama_cpt.config.model import ModelConfig  # noqa: E402
from llama_cpt.generation.decoder import make_decoder  # noqa: E402
from llama_cpt.generation.generate import generate  # noqa: E402
from llama_cpt.model.llama import Llama  # noqa: E402

NAMES = ("llama_cpt", "transformers")


def ours(options: argparse.Namespace, prompts: np.ndarray) -> Callable[[], None]:
    """Return a function that generates with this package."""
    config = ModelConfig(
        vocab_size=options.vocab,
        embed_dim=options.embed,
        mlp_dim=options.mlp,
        num_layers=options.layers,
        num_heads=options.heads,
        num_kv_heads=options.kv_heads,
        head_dim=options.embed // options.heads,
        rope_theta=500000.0,
        rope_scaling=None,
        norm_eps=1e-5,
        tied_embeddings=True,
        context_length=2048,
    )
    decoder = make_decoder(Llama(config, jax.random.key(0)))
    rows = prompts.tolist()

    def run() -> None:
        made = generate(decoder, rows, max_new_tokens=options.tokens)
        assert {len(row) for row in made} == {options.tokens}

    return run


def theirs(options: argparse.Namespace, prompts: np.ndarray) -> Callable[[], None]:
    """Return a function that generates with transformers."""
    config = transformers.LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.embed,
        intermediate_size=options.mlp,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model: Any = transformers.LlamaForCausalLM(config).eval()
    ids = torch.from_numpy(prompts)

    def run() -> None:
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options.tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert made.shape[1] == ids.shape[1] + options.tokens

    return run


def worker(pipe: Connection, name: str, rows: int, options: argparse.Namespace) -> None:
    """Generate once per message received, and send the seconds that the generation took."""
    torch.set_num_threads(options.threads)
    prompts = np.random.default_rng(0).integers(3, options.vocab, (rows, options.prompt))
    run = (ours if name == "llama_cpt" else theirs)(options, prompts)
    while pipe.recv():
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)


def measure(rows: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each repetition by program.

    The first repetition is excluded, because it includes compilation.
    """
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in NAMES:
        pipes[name], end = context.Pipe()
        context.Process(target=worker, args=(end, name, rows, options), daemon=True).start()
    seconds = {name: [] for name in NAMES}
    for repeat in range(options.repeats + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            taken = pipe.recv()
            if repeat:
                seconds[name].append(taken)
    for pipe in pipes.values():
        pipe.send(False)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {
        "vocab": 16384, "embed": 192, "mlp": 512, "layers": 6, "heads": 6, "kv-heads": 2,
        "prompt": 64, "tokens": 64, "repeats": 9, "threads": 2,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    for rows in (1, 8):
        seconds = measure(rows, options)
        speeds = {
            name: rows * options.tokens / statistics.median(taken)
            for name, taken in seconds.items()
        }
        for name, speed in speeds.items():
            every = ", ".join(f"{one:.2f}" for one in seconds[name])
            print(f"{rows} rows, {name:>12}: {speed:8.1f} tokens/s ({every} s)")
        print(f"{rows} rows, ratio: {speeds['llama_cpt'] / speeds['transformers']:.2f}", flush=True)


if __name__ == "__main__":
    main()
