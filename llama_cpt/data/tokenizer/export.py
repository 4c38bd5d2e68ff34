"""A tokenizer as the files that ``transformers`` loads, with the same ids."""

import json
from pathlib import Path
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from llama_cpt.data.tokenizer.tokenizer import (
    BOS,
    EOS,
    LLAMA3_PATTERN,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    load_tokenizer,
)
from llama_cpt.runtime.errors import UserError

# Meta's rendering of a dialogue (llama-models, models/llama3/chat_format.py).
LLAMA3_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def export_tokenizer(path: str, output: Any) -> None:
    """Write ``tokenizer.json`` and its configs into the folder ``output``.

    A ``tokenizer.json`` is copied with what lies beside it; the two other kinds are turned into
    one. Raises UserError for a SentencePiece model that none gives the same ids as.
    """
    output = Path(output)
    tokenizer = load_tokenizer(path)
    source = epath.Path(tokenizer.path)
    if tokenizer.kind == "tokenizers":
        source.copy(output / "tokenizer.json")
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (file := source.with_name(name)).is_file():
                file.copy(output / name)
        return
    if isinstance(tokenizer, TiktokenTokenizer):
        turned, bos, eos = _from_ranks(tokenizer), BOS, EOS
    else:
        turned, bos, eos = _from_sentencepiece(tokenizer)
        source.copy(output / "tokenizer.model")
    turned.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_id)]
    )
    turned.save(str(output / "tokenizer.json"))
    names = {"bos_token": bos, "eos_token": eos}
    config = names | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if tokenizer.special_id("<|eot_id|>") is not None:
        config["chat_template"] = LLAMA3_CHAT_TEMPLATE
    for name, values in (("special_tokens_map", names), ("tokenizer_config", config)):
        (output / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def _from_ranks(tokenizer: TiktokenTokenizer) -> tokenizers.Tokenizer:
    """Byte-level BPE: a token's merges are all pairs of tokens that make it, by rank."""
    ranks, symbol = tokenizer.ranks, _byte_symbols()

    def shown(token: bytes) -> str:
        return "".join(symbol[byte] for byte in token)

    merges = []
    for token in ranks:
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(ranks[a], ranks[b], a, b) for a, b in pairs if a in ranks and b in ranks]
        merges += [(shown(a), shown(b)) for _, _, a, b in sorted(known)]
    turned = tokenizers.Tokenizer(
        models.BPE(
            vocab={shown(token): rank for token, rank in ranks.items()},
            merges=merges,
            # tiktoken takes a word that is a token whole, whatever its merges.
            ignore_merges=True,
        )
    )
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    turned.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    turned.decoder = decoders.ByteLevel()
    turned.add_special_tokens([_special(name) for name in tokenizer.special_tokens])
    return turned


def _from_sentencepiece(tokenizer: Tokenizer) -> tuple[tokenizers.Tokenizer, str, str]:
    """The BPE of a SentencePiece model, with its names of BOS and EOS."""
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
    # SentencePiece takes the leftmost of equal scores: of two ways to one piece, the one with the
    # longer left part is what that leaves. The sort is stable.
    merges.sort(key=lambda merge: merge[0])
    unknown = proto.trainer_spec.unk_piece
    turned = tokenizers.Tokenizer(
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
    turned.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    undo += [decoders.Strip(" ", 1, 0)] if prefix else []
    turned.decoder = decoders.Sequence(undo)
    control = [piece.piece for piece in proto.pieces if piece.type == kinds.CONTROL]
    turned.add_special_tokens([_special(name) for name in (unknown, *control)])
    return turned, proto.trainer_spec.bos_piece, proto.trainer_spec.eos_piece


def _check_convertible(path: str, proto: Any) -> None:
    """Refuse what a BPE in ``tokenizers`` would encode otherwise."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    scores = [p.score for p in proto.pieces if p.type == kinds.NORMAL and len(p.piece) > 1]
    reasons = {
        "it is no BPE": trainer.model_type != sentencepiece_model_pb2.TrainerSpec.BPE,
        "it has no byte fallback": not trainer.byte_fallback,
        "its normaliser changes text": bool(normalizer.precompiled_charsmap),
        "it removes spaces": normalizer.remove_extra_whitespaces,
        # SentencePiece merges the leftmost of equal scores; a list of merges has no equals. The few
        # of Llama-2, runs of spaces, come out the same; a vocabulary glued to another does not.
        "many pieces share a score": len(set(scores)) < 0.99 * len(scores),
        "it has user-defined pieces": any(p.type == kinds.USER_DEFINED for p in proto.pieces),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise UserError(
            f"{path} cannot become a tokenizer.json with the same ids: {', '.join(found)}."
        )


def _special(name: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(name, special=True, normalized=False)


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, which ByteLevel uses."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }
