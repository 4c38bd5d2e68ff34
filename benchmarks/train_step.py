"""Training tokens per second on a CPU, compared with transformers and torch.

    python -m benchmarks.train_step [--embed 512 --layers 8 ...]

Both programs run whole optimizer steps (forward, backward, clipping at 1, AdamW) in float32, with
the same model, batch and number of threads. The programs take turns, so background load affects
both. Each program runs in a separate process, because memory that one library keeps is not
available to the other library. The command prints the ratio of the median rates.
"""

import argparse
import multiprocessing
from multiprocessing.connection import Connection
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from llama_cpt.config.schema import (  # noqa: E402
    MeshConfig,
    ModelConfig,
    NextTokenConfig,
    OptimizerConfig,
)
from llama_cpt.data.batch import TokenBatch  # noqa: E402
from llama_cpt.model.llama import Llama  # noqa: E402
from llama_cpt.objectives.next_token import make_objective  # noqa: E402
from llama_cpt.parallel.mesh import make_mesh  # noqa: E402
from llama_cpt.training.optimizer import make_optimizer  # noqa: E402
from llama_cpt.training.train_step import init_state, jit_train_step, make_train_step  # noqa: E402


def model_config(options: argparse.Namespace) -> ModelConfig:
    """Return the architecture that ``options`` describe."""
    return ModelConfig(
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
        tied_embeddings=False,
        context_length=options.length,
    )


def ours(config: ModelConfig, tokens: np.ndarray, chunk: int):  # noqa: ANN201
    """Return a function that runs one training step with this package and returns the loss."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(1e-4))
    state = init_state(lambda: Llama(config, jax.random.key(0)), optimizer, mesh)
    objective = make_objective(NextTokenConfig(), num_corpora=1, loss_chunk_tokens=chunk, seed=0)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jit_train_step(make_train_step(objective, optimizer), placed)
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    zeros = np.zeros((rows, length), np.int32)
    batch = TokenBatch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_mask=np.ones((rows, length), np.float32),
        segment_ids=zeros + 1,
        positions=zeros + np.arange(length, dtype=np.int32),
        corpus=zeros,
        row=np.zeros((rows, 2), np.uint32),
    )
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], batch)

    def run() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch, np.float32(1e-4))
        return float(metrics["loss"])

    return run


def theirs(config: ModelConfig, tokens: np.ndarray):  # noqa: ANN201
    """Return a function that runs one training step with torch and returns the loss."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.embed_dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.context_length,
            tie_word_embeddings=False,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    ids = torch.from_numpy(tokens[:, :-1].astype(np.int64))
    targets = torch.from_numpy(tokens[:, 1:].astype(np.int64))

    def run() -> float:
        optimizer.zero_grad()
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return run


def worker(pipe: Connection, name: str, options: argparse.Namespace) -> None:
    """Run one step per message received, and send the seconds that the step took."""
    torch.set_num_threads(options.threads)
    config = model_config(options)
    tokens = np.random.default_rng(0).integers(
        0, options.vocab, (options.rows, options.length + 1), dtype=np.int32
    )
    run = ours(config, tokens, options.chunk) if name == "llama_cpt" else theirs(config, tokens)
    while pipe.recv():
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {
        "vocab": 16000, "embed": 512, "mlp": 1408, "layers": 8, "heads": 8, "kv-heads": 4,
        "length": 512, "rows": 8, "repeats": 9, "threads": 2, "chunk": 2048,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in ("llama_cpt", "transformers"):
        pipes[name], theirs_end = context.Pipe()
        context.Process(target=worker, args=(theirs_end, name, options), daemon=True).start()
    seconds = {name: [] for name in pipes}
    for repeat in range(options.repeats + 2):
        for name, pipe in pipes.items():
            pipe.send(True)
            taken = pipe.recv()
            if repeat >= 2:
                seconds[name].append(taken)
    for pipe in pipes.values():
        pipe.send(False)
    count = options.rows * options.length
    speeds = {name: count / statistics.median(times) for name, times in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name:>13}: {speed:8.0f} tokens/s (median of {options.repeats})")
    print(f"        ratio: {speeds['llama_cpt'] / speeds['transformers']:.2f}")


if __name__ == "__main__":
    main()
