"""Training of a SentencePiece vocabulary with Llama-3's control symbols."""

from collections.abc import Iterable, Iterator
import io
import json
import os
from pathlib import Path

import sentencepiece

from llama_cpt.runtime.errors import UserError

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
CONTROL_SYMBOLS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def train_vocabulary(
    sources: Iterable[str | Path],
    output: str | Path,
    vocab_size: int,
    *,
    character_coverage: float = 1.0,
) -> None:
    """Train a BPE on the ``text`` of JSON Lines files and write a SentencePiece model.

    Equal input gives equal bytes: one thread, files and lines in order. Encoding is lossless
    (identity normalization, unseen characters as bytes) except for U+2581, SentencePiece's mark of
    a space. Line breaks are one byte each. The most frequent characters that make up the share
    ``character_coverage`` of the text get pieces; the others are bytes.

    Raises UserError if the text is too small for the vocabulary or has too many characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(sources),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            max_sentence_length=1 << 20,
            num_threads=1,
            unk_piece="<unk>",
            bos_piece=BOS,
            eos_piece=EOS,
            pad_id=-1,
            control_symbols=list(CONTROL_SYMBOLS),
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{output}: cannot train a vocabulary of {vocab_size} pieces: {reason}"
        ) from None
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    partial.write_bytes(model.getvalue())
    os.replace(partial, output)


def _lines(sources: Iterable[str | Path]) -> Iterator[str]:
    for source in sources:
        with Path(source).open(encoding="utf-8") as file:
            for line in file:
                yield from json.loads(line)["text"].split("\n")
