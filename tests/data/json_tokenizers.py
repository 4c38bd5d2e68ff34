"""Folders with a small byte-level ``tokenizer.json`` and settings that a test chooses."""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BOS_EOS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}


def write_tokenizer(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    added: Sequence[str] = (),
    prefix: str = "<|begin_of_text|>",
    **files: dict[str, Any],
) -> Path:
    """Write a tokenizer of bytes to ``folder`` and return the folder.

    The post-processor adds the token ``prefix`` unless ``prefix`` is empty. ``added`` are added
    tokens that are not special. ``config`` is the content of ``tokenizer_config.json``, by default
    with BOS and EOS. ``files`` are contents of further JSON files by name.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL]
    made.add_special_tokens(special)
    made.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in added])
    if prefix:
        made.post_processor = processors.TemplateProcessing(
            single=f"{prefix} $A", special_tokens=[(prefix, made.token_to_id(prefix))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | (
        BOS_EOS if config is None else config
    )
    for name, values in {"tokenizer_config": settings, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def write_spaced_tokenizer(
    folder: Path,
    space: str,
    *,
    config: dict[str, Any],
    special: Sequence[tokenizers.AddedToken] = (),
) -> Path:
    """Write a tokenizer that represents spaces by a character, and return the folder.

    ``space`` determines where a space is added: ``legacy`` (a normalizer), ``always`` or ``first``
    (a pre-tokenizer), ``bytes`` (a byte-level one) or ``never``. The post-processor adds ``<s>``.
    """
    mark = "\N{LOWER ONE EIGHTH BLOCK}"
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), mark]
    merges = [(mark, mark), (mark, "y"), (mark, "h")]
    pieces += ["y", "h", *(a + b for a, b in merges)]
    undo: list[Any] = [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse()]
    if space == "bytes":
        pieces = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        merges = []
    vocab = {piece: number for number, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", mark)
    if space == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(mark), replace])
    elif space == "never":
        made.normalizer = replace
    elif space == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        undo = [decoders.ByteLevel()]
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(mark, prepend_scheme=space, split=False)
    made.decoder = decoders.Sequence(undo)
    names = [tokenizers.AddedToken(name, special=True, normalized=False) for name in pieces[:3]]
    made.add_special_tokens([*names, *special])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | config), "utf-8")
    return folder
