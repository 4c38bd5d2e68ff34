"""Export of a tokenizer to files with which ``transformers`` computes the same ids."""

import json
from pathlib import Path
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2 as _sentencepiece_model_pb2
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.settings import ADDED_FILE, CONFIG_FILE, MAP_FILE
from llama_cpt.data.tokenizer.tokenizer import (
    LLAMA3_PATTERN,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    load_tokenizer,
)
from llama_cpt.runtime.errors import UserError

# The chat template of Llama 3 (meta-llama/llama-models, models/llama3/chat_format.py).
LLAMA3_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The classes of this module are created at run time, so type checkers do not know them.
sentencepiece_model_pb2: Any = _sentencepiece_model_pb2
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def export_tokenizer(path: str, output: Any) -> None:
    """Write ``tokenizer.json`` and its config files to the folder ``output``.

    A ``tokenizer.json`` is copied with the config files in its folder. A tiktoken vocabulary or a
    SentencePiece model is converted. Raises UserError if a SentencePiece model cannot be converted
    to a tokenizer with the same ids.
    """
    output = Path(output)
    tokenizer = load_tokenizer(path)
    source = epath.Path(tokenizer.path)
    if tokenizer.kind == "tokenizers":
        source.copy(output / "tokenizer.json")
        for name in (MAP_FILE, CONFIG_FILE, ADDED_FILE):
            if (file := source.with_name(name)).is_file():
                file.copy(output / name)
        return
    more: dict[str, Any] = {"add_bos_token": bool(tokenizer.text_prefix)}
    if isinstance(tokenizer, TiktokenTokenizer):
        converted = _from_ranks(tokenizer)
    else:
        converted, prefix = _from_sentencepiece(tokenizer)
        # llama.cpp adds a space before a text unless this field is false.
        more["add_prefix_space"] = prefix
        source.copy(output / "tokenizer.model")
    if tokenizer.text_prefix:
        bos = tokenizer.names["bos_token"]
        converted.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.text_prefix[0])],
        )
    converted.save(str(output / "tokenizer.json"))
    names = tokenizer.names
    config = (
        names
        | more
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
    )
    if tokenizer.special_id("<|eot_id|>") is not None:
        config["chat_template"] = LLAMA3_CHAT_TEMPLATE
    for name, values in ((MAP_FILE, names), (CONFIG_FILE, config)):
        (output / name).write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def _from_ranks(tokenizer: TiktokenTokenizer) -> tokenizers.Tokenizer:
    """Return a tiktoken vocabulary as a byte-level BPE tokenizer.

    The merges of a token are all pairs of tokens that concatenate to the token, in the order of the
    ranks of the two tokens.
    """
    ranks, symbol = tokenizer.ranks, _byte_symbols()

    def printable(token: bytes) -> str:
        return "".join(symbol[byte] for byte in token)

    merges = []
    for token in ranks:
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(ranks[a], ranks[b], a, b) for a, b in pairs if a in ranks and b in ranks]
        merges += [(printable(a), printable(b)) for _, _, a, b in sorted(known)]
    converted = tokenizers.Tokenizer(
        models.BPE(
            vocab={printable(token): rank for token, rank in ranks.items()},
            merges=merges,
            # tiktoken encodes a word that is a token as this token, and ignores merges.
            ignore_merges=True,
        )
    )
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    converted.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    converted.decoder = decoders.ByteLevel()
    converted.add_special_tokens([_special(name) for name in tokenizer.special_tokens])
    return converted


def _from_sentencepiece(tokenizer: Tokenizer) -> tuple[tokenizers.Tokenizer, bool]:
    """Return a SentencePiece model as a BPE tokenizer.

    The second result is True if the model adds a space before a text.
    """
    assert isinstance(tokenizer, SentencePieceTokenizer)
    proto = sentencepiece_model_pb2.ModelProto.FromString(epath.Path(tokenizer.path).read_bytes())
    _check_convertible(tokenizer.path, proto)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == kinds.NORMAL}
    merges = []
    for piece, score in normal.items():
        pairs = ((piece[:cut], piece[cut:]) for cut in range(len(piece) - 1, 0, -1))
        merges += [(-score, a, b) for a, b in pairs if a in normal and b in normal]
    # SentencePiece merges the leftmost of several pairs with equal scores. If two pairs give the
    # same piece, the pair with the longer left part wins. ``merges`` is in this order, and the sort
    # is stable.
    merges.sort(key=lambda merge: merge[0])
    unknown = proto.trainer_spec.unk_piece
    converted = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(a, b) for _, a, b in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = proto.normalizer_spec.add_dummy_prefix
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    converted.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    undo += [decoders.Strip(" ", 1, 0)] if prefix else []
    converted.decoder = decoders.Sequence(undo)
    control = [piece.piece for piece in proto.pieces if piece.type == kinds.CONTROL]
    converted.add_special_tokens([_special(name) for name in (unknown, *control)])
    return converted, bool(prefix)


def _check_convertible(path: str, proto: Any) -> None:
    """Raise UserError if a BPE tokenizer would not give the same ids as this model."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    scores = [p.score for p in proto.pieces if p.type == kinds.NORMAL and len(p.piece) > 1]
    reasons = {
        "it is not a BPE model": trainer.model_type != sentencepiece_model_pb2.TrainerSpec.BPE,
        "it has no byte fallback": not trainer.byte_fallback,
        "its normalizer changes text": bool(normalizer.precompiled_charsmap),
        "it removes spaces": normalizer.remove_extra_whitespaces,
        # SentencePiece merges the leftmost of several pairs with equal scores, but a list of merges
        # has a strict order. The few equal scores of Llama 2 (runs of spaces) still give the same
        # ids. A vocabulary that was merged from two vocabularies does not.
        "many pieces share a score": len(set(scores)) < 0.99 * len(scores),
        "it has user-defined pieces": any(p.type == kinds.USER_DEFINED for p in proto.pieces),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise UserError(
            f"{path} cannot be converted to a tokenizer.json with the same ids: {', '.join(found)}."
        )


def _special(name: str) -> tokenizers.AddedToken:
    """Return the special token ``name`` for ``add_special_tokens``."""
    return tokenizers.AddedToken(name, special=True, normalized=False)


def _byte_symbols() -> dict[int, str]:
    """Return the printable character with which GPT-2 and ``ByteLevel`` represent each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }
