"""The tokens at the beginning and end of each document."""

from typing import NamedTuple

from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.runtime.errors import UserError


class DocumentTokens(NamedTuple):
    """The ids that ``prepare`` writes before and after the ids of a document."""

    begin: tuple[int, ...]
    """The ids before the document, usually BOS; empty if the tokenizer adds none."""
    end: int
    """The id after the document, usually EOS."""

    @property
    def for_heldout(self) -> "DocumentTokens":
        """The tokens for held-out documents, with exactly one token before each document.

        The first token of a held-out document is predicted from this token. If ``begin`` is not
        empty, the token is the last token of ``begin``. Otherwise, it is ``end``.
        """
        return DocumentTokens(self.begin[-1:] or (self.end,), self.end)


def document_tokens(tokenizer: Tokenizer, names: tuple[str, str] | None) -> DocumentTokens:
    """Return the tokens that ``prepare`` writes before and after a document.

    ``names`` is ``data.document_tokens``: the names of the tokens before and after a document, of
    which the first can be empty. With None, the tokens are those that the tokenizer adds before a
    text, and EOS. Raises UserError if a name is not the name of a special token.
    """
    if names is None:
        return DocumentTokens(tokenizer.text_prefix, tokenizer.eos_id)
    ids = []
    for name in names:
        one = tokenizer.special_id(name)
        if one is None and (name or len(ids)):
            known = ", ".join(list(tokenizer.special_tokens)[:20])
            raise UserError(
                f"data.document_tokens: {name!r} is not a special token of {tokenizer.path}; name "
                f"one of its special tokens: {known}."
            )
        ids.append(one)
    begin, end = ids
    return DocumentTokens(() if begin is None else (begin,), end)
