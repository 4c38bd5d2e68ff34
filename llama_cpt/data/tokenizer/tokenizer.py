"""Three kinds of tokenizers with one interface; the content of a file determines its kind.

The kinds are Llama 3's ``tokenizer.model`` in tiktoken's format (lines of a base64 token and its
rank), the ``tokenizer.json`` of the ``tokenizers`` library, and SentencePiece models. All three
encode names of special tokens as ordinary text: ``<|eot_id|>`` in a document never becomes the
special token.
"""

import binascii
from dataclasses import replace
import re

from etils import epath
from jaxtyping import UInt32
import numpy as np
import sentencepiece
import tiktoken

from llama_cpt.data.tokenizer.base import (
    BOS,
    EOS,
    TOKENIZER_OPTION,
    Tokenizer,
    without_surrogates,
)
from llama_cpt.data.tokenizer.json_tokenizer import JsonTokenizer
from llama_cpt.data.tokenizer.settings import REMEDY, read_settings
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_bounded
from llama_cpt.runtime.storage import check_reachable

# Llama 3's regular expression for splitting text into words (meta-llama/llama-models,
# models/llama3/tokenizer.py).
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Llama 3's 256 special tokens in the order of their ids, which follow the ids of ordinary tokens.
# The names are those of Llama 3.1. Llama 3 has reserved tokens, which it never uses, in place of
# the fifth, sixth, ninth and eleventh.
LLAMA3_SPECIAL = [
    BOS,
    EOS,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
] + [f"<|reserved_special_token_{number}|>" for number in range(3, 248)]

# tiktoken takes time and stack space quadratic in the length of a run without a word boundary.
# Meta's tokenizer splits texts and runs at these lengths; splitting at the same positions gives the
# same ids.
MAX_TEXT_CHARACTERS = 400_000
MAX_RUN_CHARACTERS = 25_000
_RUN = re.compile(r"\s+|\S+")

FILE_NAMES = ("tokenizer.json", "tokenizer.model")
MAX_VOCABULARY_BYTES = 1 << 30


class TiktokenTokenizer(Tokenizer):
    """The tokenizer of a Llama 3 ``tokenizer.model``."""

    kind = "tiktoken"

    def __init__(self, path: epath.Path, content: bytes) -> None:
        super().__init__(path, content)
        self.ranks = _read_ranks(path, content)
        self.special_tokens = {name: len(self.ranks) + i for i, name in enumerate(LLAMA3_SPECIAL)}
        self._encoding = tiktoken.Encoding(
            path.name,
            pat_str=LLAMA3_PATTERN,
            mergeable_ranks=self.ranks,
            special_tokens=self.special_tokens,
        )
        self.vocab_size = self._encoding.n_vocab
        self._configure(read_settings(path), self.special_tokens.get)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text in ``texts``; lone surrogates become U+FFFD."""
        return [self._encode(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``; invalid UTF-8 becomes U+FFFD."""
        return self._encoding.decode(ids)

    def encode_array(self, text: str) -> UInt32[np.ndarray, " tokens"]:
        """Return the ids of ``text``; raise UnicodeError if it contains a lone surrogate."""
        arrays = [
            self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in _pieces(text)
        ]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _encode(self, text: str) -> list[int]:
        """Return the ids of ``text``."""
        ids: list[int] = []
        for piece in _pieces(text):
            ids += self._encoding.encode_ordinary(piece)
        return ids


class SentencePieceTokenizer(Tokenizer):
    """The tokenizer of a SentencePiece model.

    If the model has a normalizer that changes text, decoding does not restore the original text.
    """

    kind = "sentencepiece"

    def __init__(self, path: epath.Path, content: bytes) -> None:
        super().__init__(path, content)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.vocab_size = self._processor.get_piece_size()
        self.special_tokens = {
            self._processor.id_to_piece(one): one
            for one in range(self.vocab_size)
            if self._processor.is_control(one)
        }
        own = {"bos_token": self._processor.bos_id(), "eos_token": self._processor.eos_id()}
        names = {key: self._processor.id_to_piece(one) for key, one in own.items() if one >= 0}
        settings = read_settings(path)
        settings = replace(settings, names=names | settings.names)
        self._configure(settings, self._find)

    def _find(self, name: str) -> int | None:
        """Return the id of a piece, or None if the vocabulary does not contain the piece."""
        found = self._processor.piece_to_id(name)
        return found if self._processor.id_to_piece(found) == name else None

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text in ``texts``; lone surrogates become U+FFFD."""
        return [self._processor.encode(without_surrogates(text)) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``; control symbols are replaced by their names."""
        text, run = [], []
        for one in ids:
            if self._processor.is_control(one):
                text += [self._processor.decode(run), self._processor.id_to_piece(one)]
                run = []
            else:
                run.append(one)
        return "".join([*text, self._processor.decode(run)])


def load_tokenizer(path: str) -> Tokenizer:
    """Return the tokenizer of a vocabulary file, or of a folder that contains one.

    ``path`` is local or ``gs://``. Raises UserError if there is no vocabulary file, or if the file
    is damaged or of an unknown kind.
    """
    file = find_vocabulary(path)
    content = read_bounded(str(file), REMEDY, max_bytes=MAX_VOCABULARY_BYTES)
    first = content.split(b"\n", 1)[0]
    if re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?", first):
        return TiktokenTokenizer(file, content)
    if content.lstrip()[:1] == b"{":
        return JsonTokenizer(file, content)
    try:
        readable = sentencepiece.SentencePieceProcessor(model_proto=content).get_piece_size() > 0
    except RuntimeError:
        readable = False
    if not readable:
        raise UserError(
            f"{file} must be Llama 3's tokenizer.model, a tokenizer.json or a SentencePiece model; "
            "the file is damaged or of a different kind."
        )
    return SentencePieceTokenizer(file, content)


def find_vocabulary(path: str) -> epath.Path:
    """Return the vocabulary file at ``path``, which is a file or a folder.

    A folder contains the file directly or in ``original/``. ``path`` is local or ``gs://``. Raises
    UserError if there is no vocabulary file.
    """
    check_reachable(path)
    location = epath.Path(path).expanduser()
    folders = (location, location / "original") if location.is_dir() else ()
    for file in (location, *(folder / name for folder in folders for name in FILE_NAMES)):
        if file.is_file():
            return file
    problem = f"contains no {' or '.join(FILE_NAMES)}" if location.is_dir() else "does not exist"
    raise UserError(
        f"tokenizer {path} {problem}; set data.tokenizer {TOKENIZER_OPTION} to the model's own "
        "tokenizer."
    )


def _read_ranks(path: epath.Path, content: bytes) -> dict[bytes, int]:
    """Return the rank of each token; raise UserError if the file is incomplete."""
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[binascii.a2b_base64(token, strict_mode=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{path}:{number}: not a token and its rank; is the file complete?"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{path}: ranks are missing or duplicated; is the file complete?")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(f"{path}: no token for byte {missing[0]}; is the file complete?")
    return ranks


def _pieces(text: str) -> list[str]:
    """Return ``text`` split into one or more pieces that tiktoken can encode."""
    if len(text) <= MAX_RUN_CHARACTERS:
        return [text]
    starts = range(0, len(text), MAX_TEXT_CHARACTERS)
    return [piece for at in starts for piece in _cut_runs(text[at : at + MAX_TEXT_CHARACTERS])]


def _cut_runs(text: str) -> list[str]:
    """Split ``text`` so that no run of spaces or non-spaces exceeds MAX_RUN_CHARACTERS."""
    # Finding all runs takes a third of the time of encoding and is rarely needed. A run that is
    # longer than the maximum contains a multiple of ``half`` and the ``half`` characters after it.
    half = MAX_RUN_CHARACTERS // 2
    runs = ((at, _RUN.match(text, at)) for at in range(0, len(text), half))
    if all(run and run.end() < at + half for at, run in runs):
        return [text]
    pieces, start = [], 0
    for run in _RUN.finditer(text):
        for cut in range(run.start() + MAX_RUN_CHARACTERS, run.end(), MAX_RUN_CHARACTERS):
            pieces.append(text[start:cut])
            start = cut
    return [*pieces, text[start:]]
