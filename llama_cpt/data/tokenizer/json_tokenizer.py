"""The tokenizer of a ``tokenizer.json`` file, which the library ``tokenizers`` reads."""

from collections.abc import Generator
import contextlib
from typing import Any

from etils import epath
import tokenizers

from llama_cpt.data.tokenizer.base import Tokenizer, without_surrogates
from llama_cpt.data.tokenizer.settings import (
    CONFIG_FILE,
    REMEDY,
    TokenizerSettings,
    read_settings,
)
from llama_cpt.runtime.errors import UserError, first_line
from llama_cpt.runtime.json_files import parse_json_object

# Factor by which the normalizer or decoder of a tokenizer.json can lengthen a text.
MAX_GROWTH = 256
MAX_BYTES = 1 << 30
# Probe texts for the tokens that the post-processor adds. A normalizer is unlikely to remove all of
# these texts.
PROBES = ("a", "0", "\N{CJK UNIFIED IDEOGRAPH-4E00}", ".", "Z")


class JsonTokenizer(Tokenizer):
    """The tokenizer of a ``tokenizer.json`` file, with the settings in the same folder.

    If no setting names BOS or EOS, common names are tried.
    """

    kind = "tokenizers"

    def __init__(self, path: epath.Path, content: bytes) -> None:
        super().__init__(path, content)
        values = parse_json_object(content, str(path), REMEDY)
        _require_bounded_growth(str(path), values)
        settings = read_settings(path)
        with _library_errors(str(path)):
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            self._add_tokens(settings)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            # Names of special tokens in a text are then encoded as ordinary text.
            self._tokenizer.encode_special_tokens = True
            added = self._tokenizer.get_added_tokens_decoder()
            own = {t.content: one for one, t in added.items() if t.special}
            self.special_tokens = dict(own)
            self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
            begin = self._tokens_before_text()
        self._configure(settings, self._tokenizer.token_to_id, text_prefix=begin)
        named = [
            tokenizers.AddedToken(name, special=True, normalized=False)
            for name in self.special_tokens
            if name not in own
        ]
        self._tokenizer.add_special_tokens(named)
        self.has_added_text = any(t.content not in self.special_tokens for t in added.values())
        self.added_tokens = tuple((one, repr(token)) for one, token in sorted(added.items()))
        special = {one: added[one] for one in self.special_tokens.values() if one in added}
        self.strips_left = frozenset(one for one, token in special.items() if token.lstrip)
        self.strips_right = frozenset(one for one, token in special.items() if token.rstrip)
        self.adds_space_after_special = self._adds_space_after_special()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text in ``texts``; lone surrogates become U+FFFD."""
        encoded = self._tokenizer.encode_batch_fast(
            list(map(without_surrogates, texts)), add_special_tokens=False
        )
        return [one.ids for one in encoded]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``; special tokens are replaced by their names."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _tokens_before_text(self) -> tuple[int, ...]:
        """Return the ids that the post-processor adds before a text."""
        for text in PROBES:
            plain, processed = (
                self._tokenizer.encode(text, add_special_tokens=one).ids for one in (False, True)
            )
            # The post-processor can also append tokens to the text.
            if plain:
                return tuple(processed[: processed.index(plain[0])])
        return ()

    def _adds_space_after_special(self) -> bool:
        """Return False if the tokenizer adds a space before a text, but not after a special token.

        Such a tokenizer has the pre-tokenizer ``Metaspace`` with the scheme ``first``.
        """
        name = self.names["eos_token"]
        self._tokenizer.encode_special_tokens = False
        try:
            ids = self._tokenizer.encode(f"{name}a", add_special_tokens=False).ids
        finally:
            self._tokenizer.encode_special_tokens = True
        return ids[1:] == self.encode("a")

    def _add_tokens(self, settings: TokenizerSettings) -> None:
        """Add the tokens of the tokenizer's config; their properties in the config take precedence.

        Raises UserError if the library gives a token an id that differs from the config.
        """
        added = self._tokenizer.get_added_tokens_decoder().values()
        known = {token.content: repr(token) for token in added}
        special = {*settings.names.values(), *settings.others}
        former = {
            one: tokenizers.AddedToken(
                name, normalized=name not in special, special=name in special
            )
            for name, one in sorted(settings.former_added.items(), key=lambda pair: pair[1])
            if self._tokenizer.token_to_id(name) is None
        }
        changes = False
        for one, token in (settings.added or former).items():
            if known.get(token.content) != repr(token):
                changes |= token.content in known
                add = (
                    self._tokenizer.add_special_tokens
                    if token.special
                    else (self._tokenizer.add_tokens)
                )
                add([token])
            if (found := self._tokenizer.token_to_id(token.content)) != one:
                raise UserError(
                    f"{self.path}: token {token.content!r} has id {found}, but {CONFIG_FILE} "
                    f"gives it id {one}; {REMEDY}."
                )
        if changes:
            # In the library, a special token stays special until the tokenizer is loaded again.
            self._tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())


def _require_bounded_growth(path: str, values: dict[str, Any]) -> None:
    """Raise UserError if the replacements in a ``tokenizer.json`` can lengthen a text too much.

    A chain of replacements that each double a text would take unbounded time and memory.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth, waiting = 1.0, [values.get(part)]
        while waiting:
            step = waiting.pop()
            if isinstance(step, list):
                waiting += step
            elif isinstance(step, dict):
                waiting += [value for value in step.values() if isinstance(value, dict | list)]
                if step.get("type") == "Replace":
                    growth *= _growth(step)
        if growth > MAX_GROWTH:
            raise UserError(
                f"{path}: the replacements of its {part} can make a text {growth:.3g} times as "
                f"long, more than {MAX_GROWTH} times; {REMEDY}."
            )


def _growth(step: dict[str, Any]) -> float:
    """Return the maximum factor by which a replacement lengthens a text."""
    pattern, content = step.get("pattern"), step.get("content")
    size = len(content) if isinstance(content, str) else 0
    text = pattern.get("String") if isinstance(pattern, dict) else None
    # A regular expression can match the empty text before each character.
    return max(1.0, size / max(len(text), 1) if isinstance(text, str) else size + 1.0)


@contextlib.contextmanager
def _library_errors(path: str) -> Generator[None]:
    """Context manager that turns errors of the library ``tokenizers`` into UserError."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # The library raises bare Exception. A panic of its Rust code is a BaseException.
        panicked = type(error).__name__ == "PanicException"
        if not panicked and not isinstance(error, Exception):
            raise
        raise UserError(f"{path}: not a tokenizer.json ({first_line(error)}).") from None
