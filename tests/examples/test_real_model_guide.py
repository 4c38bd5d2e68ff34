"""The commands of docs/guide/real_model.md run as printed, on a small model and small text."""

import gzip
import io
import json
from pathlib import Path
import re
import shlex
import sys

import pytest
import tokenizers
import transformers

from llama_cpt import chat, convert, evaluate, prepare, train
from tests.conftest import ROOT
from tests.weights.hf_models import save_llama

GUIDE = ROOT / "docs" / "guide" / "real_model.md"
MODULES = {"prepare": prepare, "train": train, "evaluate": evaluate, "chat": chat}
SMALL = [
    *("--num-steps", "2", "--optimizer.warmup-steps", "1", "--data.sequence-length", "32"),
    *("--evaluation.documents", "2", "--global-batch-size", "8", "--microbatch-size", "8"),
    *("--evaluation.batch-size", "8"),
]
"""Options that make the runs of the guide small."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SETUP = ("python3 -m venv", "pip install", "export", "corpus/")
"""The beginnings of lines that prepare the shell, and of the listing of files."""


def commands() -> list[str]:
    """Return the lines in the guide's blocks of commands."""
    blocks = re.findall(r"^```\n(.*?)^```$", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def write_model(folder: Path) -> None:
    """Write a random Llama with a chat tokenizer of one token per byte, like SmolLM2's."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: i for i, letter in enumerate(names + alphabet)}, [])
    )
    tokenizer.add_special_tokens(names)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    save_llama(
        folder,
        vocab_size=len(names + alphabet),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=512,
    )


def write_text(folder: Path) -> None:
    for language, sentence in (("zh", "山下有一条河。"), ("en", "A river runs below the hill. ")):
        below = folder / "corpus" / language
        below.mkdir(parents=True)
        for part, count in (("train-00000", 40), ("valid", 4)):
            with gzip.open(below / f"{language}.{part}.jsonl.gz", "wt", encoding="utf-8") as file:
                for number in range(count):
                    text = f"{number} {sentence * 4}"
                    print(json.dumps({"text": text, "source": str(number)}), file=file)


def run(line: str, monkeypatch) -> int:
    """Run a command of the guide in this process, and return its exit status."""
    piped, _, command = line.rpartition(" | ")
    if piped:
        monkeypatch.setattr(sys, "stdin", io.StringIO(shlex.split(piped)[1] + "\n"))
    python, option, module, *arguments = shlex.split(command)
    assert (python, option) == ("python", "-m")
    name = module.removeprefix("llama_cpt.")
    if name == "convert":
        monkeypatch.setattr(convert, "_on_cpu", lambda: None)
        return convert.main(arguments)
    small = SMALL if name in ("prepare", "train") else []
    return MODULES[name].main([*arguments, *small]) or 0


@pytest.mark.slow
def test_guide_reaches_a_chatting_model(tmp_path, monkeypatch, capsys):
    lines = [line for line in commands() if not line.startswith(SETUP)]
    assert len(commands()) < 20
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("LLAMA_CPT_DATA", str(tmp_path / "data"))
    written = {"benchmarks.smollm2": write_model, "examples.download_text": write_text}
    for line in lines:
        module = next((name for name in written if name in line), None)
        if module:
            written[module](tmp_path / ("weights/smollm2" if "smollm2" in module else "data"))
        else:
            assert run(line, monkeypatch) == 0, line
    out = capsys.readouterr().out
    assert "bpb: zh" in out and "after" in out
    saved = json.loads((tmp_path / "runs/real_model/cpt/config.json").read_text())
    assert saved["model"]["num_layers"] == 3 and saved["init_from"] == "weights/smollm2"
    exported = tmp_path / "runs/real_model/exported"
    assert (exported / "model.safetensors").exists()
