"""Training of a SentencePiece vocabulary that includes the control symbols of Llama 3."""

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
    """Train a BPE vocabulary on the ``text`` of JSON Lines files; write a SentencePiece model.

    Equal input gives a model with equal bytes, because training uses one thread and reads files and
    lines in order. The text is not normalized, and characters without a piece are encoded as bytes.
    Decoding therefore restores the encoded text exactly, unless the text contains U+2581, which
    SentencePiece uses for a space. A line break is one byte token. The most frequent characters get
    pieces, until these characters make up the share ``character_coverage`` of the text.

    Raises UserError if the text is too small for ``vocab_size`` pieces, or if it has more different
    characters than a vocabulary of this size can contain.
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
        with Path(source).open(encoding="utf-8-sig") as file:
            for line in file:
                yield from json.loads(line)["text"].split("\n")
