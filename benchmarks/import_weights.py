"""Host memory and time to load a bfloat16 checkpoint as float32, compared with transformers.

    python -m benchmarks.import_weights [--gigabytes 4] [--repeats 3] [--folder DIR]

The command writes a random sharded checkpoint with the shapes of Llama-3.2-1B and as many layers as
``--gigabytes`` requires. Both programs load the checkpoint in new processes and take turns. The
files are in the page cache for both programs. The command prints medians and removes the
checkpoint.
"""

import argparse
import json
import math
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "vocab_size": 128256,
    "embed_dim": 2048,
    "mlp_dim": 8192,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 64,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "norm_eps": 1e-5,
    "tied_embeddings": True,
    "context_length": 8192,
}
SHARD_BYTES = 1 << 30
READERS = {
    "llama_cpt": """
from llama_cpt.weights.hf_weights import load_hf
import jax
before = memory("VmRSS")
start = time.perf_counter()
model = load_hf(sys.argv[1])
seconds = time.perf_counter() - start
arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
""",
    "transformers": """
import torch, transformers
before = memory("VmRSS")
start = time.perf_counter()
model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
seconds = time.perf_counter() - start
arrays = sum(parameter.nbytes for parameter in model.parameters())
""",
}
PREAMBLE = """
import json, sys, time
def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024
"""
EPILOGUE = """
values = {"seconds": seconds, "arrays": arrays, "before": before, "peak": memory("VmHWM")}
print("RESULT" + json.dumps(values))
"""


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """Write a checkpoint of about ``gigabytes`` GB with random tensors, and return its bytes."""
    # The names, the shapes and the config are those that an export writes.
    from llama_cpt.config.model import ModelConfig
    from llama_cpt.weights.hf_config import config_json
    from llama_cpt.weights.hf_names import tensor_shapes
    from llama_cpt.weights.safetensors import INDEX_FILE, file_header

    def size(layers: int) -> tuple[ModelConfig, dict, int]:
        config = ModelConfig(num_layers=layers, **SHAPES)
        shapes = tensor_shapes(config)
        return config, shapes, 2 * sum(map(math.prod, shapes.values()))

    one, two = size(1)[2], size(2)[2]
    config, shapes, total = size(max(1, round((gigabytes * 1e9 - one) / (two - one)) + 1))
    shards, room = [[]], SHARD_BYTES
    for name, shape in shapes.items():
        if shards[-1] and 2 * math.prod(shape) > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append((name, np.dtype(ml_dtypes.bfloat16), shape))
        room -= 2 * math.prod(shape)
    random = np.random.default_rng(0)
    pool = (0.02 * random.standard_normal(1 << 24, np.float32)).astype(ml_dtypes.bfloat16)
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file).open("wb") as out:
            out.write(file_header(shard))
            for name, _, shape in shard:
                weight_map[name] = file
                left = math.prod(shape)
                while left:
                    start = int(random.integers(pool.size // 2))
                    part = pool[start : start + left]
                    out.write(part.view(np.uint8).data)
                    left -= part.size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    values = config_json(config, "bfloat16", {"bos_token_id": 128000, "eos_token_id": 128001})
    (folder / "config.json").write_text(json.dumps(values))
    return total


def measure(reader: str, folder: Path) -> dict[str, float]:
    """Load the checkpoint once in a new process, and return the values that EPILOGUE prints."""
    code = PREAMBLE + READERS[reader] + EPILOGUE
    # Both readers inherit the caller's environment, so they use the same threads and device.
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.decode().split("RESULT")[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="folder for the temporary checkpoint")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        total = write_checkpoint(folder, options.gigabytes)
        print(f"{total / 1e9:.2f} GB of bfloat16 in {time.perf_counter() - start:.0f} s")
        results = {reader: [] for reader in READERS}
        for _ in range(options.repeats):
            for reader in READERS:
                results[reader].append(measure(reader, folder))
    for reader, runs in results.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        above = middle["peak"] - middle["arrays"]
        print(
            f"{reader:13s} {middle['seconds']:6.1f} s ({total / middle['seconds'] / 1e9:.2f} GB/s)"
            f"  arrays {middle['arrays'] / 1e9:.2f} GB  VmHWM {middle['peak'] / 1e9:.2f} GB, "
            f"{above / 1e9:.2f} GB above the arrays ({middle['before'] / 1e9:.2f} GB before)"
            f"  all times {[round(run['seconds'], 1) for run in runs]}"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
