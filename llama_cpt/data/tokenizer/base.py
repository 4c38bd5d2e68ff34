"""The interface of tokenizers, which convert text to token ids and back."""

from collections.abc import Callable
from functools import cached_property
import hashlib
import json

from etils import epath
from jaxtyping import UInt32
import numpy as np

from llama_cpt.data.tokenizer.settings import CONFIG_FILE, TokenizerSettings
from llama_cpt.runtime.errors import UserError

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
# Names of BOS and EOS in common vocabularies, for folders without a config of the tokenizer.
USUAL_BOS = (BOS, "<s>", "<bos>")
USUAL_EOS = (EOS, "</s>", "<eos>", "<|endoftext|>")
# Texts that ``encode_after`` puts before a text to encode it as a continuation.
CONTEXTS = ("\n", "\x01", ".")
CONTEXT_CHARACTERS = 16
TOKENIZER_OPTION = "(in chat, evaluate, make_replay and convert to-hf: --tokenizer)"
"""The option that names a tokenizer and the commands that have it, for error messages."""


class Tokenizer:
    """Base class of tokenizers, which convert text to token ids without adding BOS or EOS.

    ``path`` is the path of the vocabulary file, and ``content`` the bytes of this file. Subclasses
    set the attributes; ``_configure`` sets those that depend on ``settings``.
    """

    kind: str
    vocab_size: int
    bos_id: int | None
    """Id of BOS; None if the tokenizer has no BOS."""
    eos_id: int
    text_prefix: tuple[int, ...]
    """Ids of the tokens before a text: the tokens that the tokenizer's post-processor or config
    adds, which is usually BOS. If a vocabulary file has neither, the tuple contains BOS, as in
    Meta's code."""
    special_tokens: dict[str, int]
    """Map from the names to the ids of the tokens that never encode ordinary text."""
    names: dict[str, str]
    """The names of special tokens by field, such as ``bos_token``, for chat templates."""
    has_added_text: bool = False
    """True if the vocabulary contains added tokens that encode ordinary text."""
    adds_space_after_special: bool = True
    """False if the tokenizer adds a space before a text, but not after a special token."""
    strips_left: frozenset[int] = frozenset()
    """Ids of the special tokens that remove the whitespace before them."""
    strips_right: frozenset[int] = frozenset()
    """Ids of the special tokens that remove the whitespace after them."""
    absent_names: frozenset[str] = frozenset()
    """Names of special tokens in the config that the vocabulary does not contain."""
    added_tokens: tuple[tuple[int, str], ...] = ()
    """The id and the description of each added token."""

    def __init__(self, path: epath.Path, content: bytes) -> None:
        self.path = str(path)
        self.content_digest = hashlib.sha256(content).hexdigest()
        """The SHA-256 of the vocabulary file, by which earlier versions identified tokenizers."""

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of everything that determines the ids of a text and of special tokens."""
        identity = [
            self.kind,
            self.content_digest,
            sorted(self.special_tokens.items()),
            self.vocab_size,
            self.bos_id,
            self.eos_id,
            self.text_prefix,
            sorted(self.names.items()),
            self.added_tokens,
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def context_id(self) -> int:
        """Id of the token that precedes a text in a prediction: BOS, or EOS if there is no BOS."""
        return self.eos_id if self.bos_id is None else self.bos_id

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``; names of special tokens are encoded as ordinary text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text in ``texts``, encoded as in ``encode``."""
        raise NotImplementedError

    def encode_after(self, before: str, text: str) -> list[int]:
        """Return the ids of ``text`` as a continuation of the text ``before``.

        Tokenizers that add a space before a text add no space here. No token contains characters
        of both texts.
        """
        if not self.adds_space:
            return self.encode(text)
        return self._encode_after((before[-CONTEXT_CHARACTERS:], *CONTEXTS), text)

    @cached_property
    def adds_space(self) -> bool:
        """True if the tokenizer adds a space before a text."""
        return self._encode_after(CONTEXTS, "a") != self.encode("a")

    def _encode_after(self, contexts: tuple[str, ...], text: str) -> list[int]:
        """Return the ids of ``text`` after the first context that shares no token with it."""
        for context in contexts:
            alone, both = self.encode_batch([context, context + text])
            if alone and both[: len(alone)] == alone:
                return both[len(alone) :]
        return self.encode(text)

    def encode_array(self, text: str) -> UInt32[np.ndarray, " tokens"]:
        """Return the ids of ``text`` as an array, without an intermediate list if possible."""
        return np.array(self.encode(text), np.uint32)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``; special tokens are replaced by their names."""
        raise NotImplementedError

    def special_id(self, name: str) -> int | None:
        """Return the id of the special token ``name``, or None if there is no such token."""
        return self.special_tokens.get(name)

    def require_size(self, vocab_size: int) -> None:
        """Raise UserError if the vocabulary has more tokens than a model of ``vocab_size``.

        A model can have more embedding rows than the vocabulary has tokens. These rows are padding.
        """
        if self.vocab_size > vocab_size:
            raise UserError(
                f"{self.path} has {self.vocab_size} tokens, but model.vocab_size is {vocab_size}; "
                f"set data.tokenizer {TOKENIZER_OPTION} to the model's own tokenizer."
            )

    def _configure(
        self,
        settings: TokenizerSettings,
        find: Callable[[str], int | None],
        *,
        text_prefix: tuple[int, ...] | None = None,
    ) -> None:
        """Set BOS, EOS, ``text_prefix`` and the names of special tokens.

        ``find`` returns the id of a name or None. ``text_prefix`` contains the ids that the
        post-processor of a ``tokenizer.json`` adds. If it is empty, BOS is added only if
        ``add_bos_token`` in the config is true. If it is None, because the vocabulary has no
        post-processor, BOS is added unless the config forbids it. Raises UserError if EOS is
        unknown, or if the name of BOS or EOS is not in the vocabulary.
        """
        names = dict(settings.names)
        for key, usual in (("bos_token", USUAL_BOS), ("eos_token", USUAL_EOS)):
            if key not in names:
                names[key] = next((name for name in usual if find(name) is not None), None)
            if (name := names[key]) and find(name) is None:
                raise UserError(
                    f"{self.path} has no token {name!r}, which its config names as {key}; copy "
                    "the tokenizer's files again, or correct the config."
                )
        self.names = {key: name for key, name in names.items() if name}
        # A config can name tokens that the vocabulary does not contain, such as a pad_token.
        known = {name: find(name) for name in (*self.names.values(), *settings.others)}
        further = (*(token.content for token in settings.added.values()), *settings.former_added)
        self.special_tokens |= {name: one for name, one in known.items() if one is not None}
        self.absent_names = frozenset(name for name in (*known, *further) if find(name) is None)
        if "eos_token" not in self.names:
            raise UserError(
                f"{self.path}: no eos_token is known; set 'eos_token' in a {CONFIG_FILE} in the "
                "same folder."
            )
        self.bos_id = self.special_tokens.get(self.names.get("bos_token", ""))
        self.eos_id = self.special_tokens[self.names["eos_token"]]
        bos = () if self.bos_id is None else (self.bos_id,)
        if text_prefix is None:
            self.text_prefix = () if settings.adds_bos is False else bos
        else:
            self.text_prefix = text_prefix or (bos if settings.adds_bos else ())


def without_surrogates(text: str) -> str:
    """Return ``text`` with U+FFFD in place of each lone surrogate, as in tiktoken."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
