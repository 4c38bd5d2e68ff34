"""Three kinds of vocabulary behind one interface, told apart by what the file holds.

Llama-3's tiktoken ``tokenizer.model`` (lines of base64 and rank), a ``tokenizer.json`` of the
``tokenizers`` library, a SentencePiece ``.model``. All of them encode text as ordinary text: a
literal ``<|eot_id|>`` in a document never becomes the special token.
"""

import binascii
import hashlib
import json
import re
from typing import Any

from etils import epath
from jaxtyping import UInt32
import numpy as np
import sentencepiece
import tiktoken
import tokenizers

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import check_reachable

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"

# Llama-3's split of text into words (meta-llama/llama-models, models/llama3/tokenizer.py).
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Llama-3's special tokens follow its ranks, 256 in all. Names as in Llama 3.1; Llama 3 calls the
# fifth, sixth, ninth and eleventh reserved and never uses them.
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

# tiktoken's splitter takes time and stack in the square of a run without a word border: Meta's own
# tokenizer cuts texts and runs at these lengths, and so do we, with the same ids.
MAX_TEXT_CHARACTERS = 400_000
MAX_RUN_CHARACTERS = 25_000
_RUN = re.compile(r"\s+|\S+")

FILE_NAMES = ("tokenizer.model", "tokenizer.json")


class Tokenizer:
    """Text to ids and back, without BOS or EOS. ``path`` is the vocabulary file itself."""

    kind: str
    vocab_size: int
    bos_id: int
    eos_id: int
    special_tokens: dict[str, int]
    """Ids by name of the tokens that no ordinary text has, such as ``<|eot_id|>``."""

    def __init__(self, path: epath.Path, content: bytes) -> None:
        self.path = str(path)
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as ordinary text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        raise NotImplementedError

    def encode_array(self, text: str) -> UInt32[np.ndarray, " tokens"]:
        """Ids of ``text``, as fast as the library makes them; for much text."""
        return np.array(self.encode(text), np.uint32)

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; special tokens by their names."""
        raise NotImplementedError

    def special_id(self, name: str) -> int | None:
        """The id of a special token such as ``<|eot_id|>``, None where there is none."""
        return self.special_tokens.get(name)

    def require_size(self, vocab_size: int) -> None:
        """Raise UserError unless the vocabulary is that of a model with ``vocab_size`` tokens."""
        if self.vocab_size != vocab_size:
            raise UserError(
                f"{self.path} has {self.vocab_size} tokens, model.vocab_size is {vocab_size}: name "
                "the model's own tokenizer."
            )

    def _required_id(self, name: str) -> int:
        found = self.special_id(name)
        if found is None:
            raise UserError(f"{self.path} has no token {name}: documents could not be delimited.")
        return found


class TiktokenTokenizer(Tokenizer):
    """Llama-3's own file."""

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
        self.bos_id, self.eos_id = self.special_tokens[BOS], self.special_tokens[EOS]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; lone surrogates become U+FFFD."""
        return [self._encode(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; broken UTF-8 becomes U+FFFD."""
        return self._encoding.decode(ids)

    def encode_array(self, text: str) -> UInt32[np.ndarray, " tokens"]:
        """Ids of ``text``, without a list in between; lone surrogates raise UnicodeError."""
        arrays = [
            self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in _pieces(text)
        ]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _pieces(text):
            ids += self._encoding.encode_ordinary(piece)
        return ids


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json``; BOS and EOS as the ``tokenizer_config.json`` beside it says."""

    kind = "tokenizers"

    def __init__(self, path: epath.Path, content: bytes) -> None:
        super().__init__(path, content)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            added = json.loads(content).get("added_tokens", [])
            # The same vocabulary without its added tokens: what encodes special text as text.
            self._ordinary = tokenizers.Tokenizer.from_str(
                json.dumps({**json.loads(content), "added_tokens": []})
            )
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer.json ({error}).") from None
        self._ordinary.no_truncation()
        self._ordinary.no_padding()
        self.special_tokens = {token["content"]: token["id"] for token in added}
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        names = _configured_names(path)
        self.bos_id = self._delimiter(names.get("bos_token"), (BOS, "<s>", "<bos>"), "bos_token")
        self.eos_id = self._delimiter(
            names.get("eos_token"), (EOS, "</s>", "<eos>", "<|endoftext|>"), "eos_token"
        )

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        encoded = self._ordinary.encode_batch_fast(texts, add_special_tokens=False)
        return [one.ids for one in encoded]

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _delimiter(self, configured: str | None, usual: tuple[str, ...], field: str) -> int:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        for name in (configured,) if configured else usual:
            if name in vocabulary:
                return vocabulary[name]
        raise UserError(
            f"{self.path}: no {field} is known; name it as {field!r} in a tokenizer_config.json "
            "beside the file."
        )


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; lossy where its normaliser changes text."""

    kind = "sentencepiece"

    def __init__(self, path: epath.Path, content: bytes) -> None:
        super().__init__(path, content)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.vocab_size = self._processor.get_piece_size()
        self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()
        if min(self.bos_id, self.eos_id) < 0:
            raise UserError(f"{path} defines no bos or eos piece: train it with both.")
        self.special_tokens = {
            self._processor.id_to_piece(one): one
            for one in range(self.vocab_size)
            if self._processor.is_control(one)
        }

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self._processor.encode(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; control symbols by their names."""
        text, run = [], []
        for one in ids:
            if self._processor.is_control(one):
                text += [self._processor.decode(run), self._processor.id_to_piece(one)]
                run = []
            else:
                run.append(one)
        return "".join([*text, self._processor.decode(run)])


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer in ``path`` (local or ``gs://``): a vocabulary file or a folder with one.

    Raises UserError where there is none, or it is damaged or of no known kind.
    """
    file = find_vocabulary(path)
    content = file.read_bytes()
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
            f"{file}: neither Llama-3's tokenizer.model, nor a tokenizer.json, nor an undamaged "
            "SentencePiece model."
        )
    return SentencePieceTokenizer(file, content)


def find_vocabulary(path: str) -> epath.Path:
    """The vocabulary file that ``path`` (local or ``gs://``) names or, being a folder, holds."""
    check_reachable(path)
    place = epath.Path(path).expanduser()
    folders = (place, place / "original") if place.is_dir() else ()
    for file in (place, *(folder / name for folder in folders for name in FILE_NAMES)):
        if file.is_file():
            return file
    looked = f"holds no {' or '.join(FILE_NAMES)}" if place.is_dir() else "does not exist"
    raise UserError(f"tokenizer {path} {looked}; set data.tokenizer to the model's own.")


def _read_ranks(path: epath.Path, content: bytes) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[binascii.a2b_base64(token, strict_mode=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{path}:{number}: not a token and its rank; is the file whole?"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{path}: ranks are missing or double; is the file whole?")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(f"{path}: no token for byte {missing[0]}; is the file whole?")
    return ranks


def _pieces(text: str) -> list[str]:
    """``text`` as tiktoken can take it, at least one piece."""
    if len(text) <= MAX_RUN_CHARACTERS:
        return [text]
    starts = range(0, len(text), MAX_TEXT_CHARACTERS)
    return [piece for at in starts for piece in _cut_runs(text[at : at + MAX_TEXT_CHARACTERS])]


def _cut_runs(text: str) -> list[str]:
    """``text`` cut so that no run of spaces or of other characters is over the longest."""
    # Walking the runs takes a third of the encoding's time and is hardly ever needed: a run over
    # the longest goes on for half of it from one of these places.
    half = MAX_RUN_CHARACTERS // 2
    if all(_RUN.match(text, at).end() < at + half for at in range(0, len(text), half)):
        return [text]
    pieces, start = [], 0
    for run in _RUN.finditer(text):
        for cut in range(run.start() + MAX_RUN_CHARACTERS, run.end(), MAX_RUN_CHARACTERS):
            pieces.append(text[start:cut])
            start = cut
    return [*pieces, text[start:]]


def _configured_names(path: epath.Path) -> dict[str, Any]:
    """``bos_token`` and ``eos_token`` of the ``tokenizer_config.json`` beside ``path``."""
    file = path.with_name("tokenizer_config.json")
    if not file.is_file():
        return {}
    values = json.loads(file.read_text("utf-8"))
    return {
        field: token["content"] if isinstance(token, dict) else token
        for field in ("bos_token", "eos_token")
        if (token := values.get(field))
    }
