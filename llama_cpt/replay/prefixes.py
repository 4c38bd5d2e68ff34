"""Beginnings of documents, which the model continues."""

from collections.abc import Iterator

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.sources.documents import BadDocument, Document, parse_documents, read_blocks
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.tokenizer.tokenizer import Tokenizer
from llama_cpt.runtime.errors import UserError

MOST_DOCUMENTS = 10_000
"""Maximum number of documents whose beginnings are used."""
CHARACTERS_PER_TOKEN = 32
"""Number of characters per token of a prefix that are encoded; longer tokens are rare."""
_BLOCK_BYTES = 1 << 20


def read_prefixes(source: str, text_field: str, tokenizer: Tokenizer, tokens: int) -> list[str]:
    """Return the first ``tokens`` tokens of each of the first ``MOST_DOCUMENTS`` documents as text.

    A prefix never ends within a character. Raises UserError if a document cannot be read or no
    document has ``tokens`` tokens.
    """
    prefixes = []
    for document in _documents(source, text_field):
        if len(prefixes) == MOST_DOCUMENTS:
            break
        # Prefixes begin a document, as in training, so spaces before them have no meaning.
        start = document.text.strip()[: tokens * CHARACTERS_PER_TOKEN]
        ids = tokenizer.encode(start)[:tokens]
        text = tokenizer.decode(ids).rstrip("\ufffd")
        if len(ids) == tokens and text:
            prefixes.append(text)
    if not prefixes:
        raise UserError(
            f"--prefixes {source}: no document has {tokens} tokens; set a lower --prefix-tokens."
        )
    return prefixes


def _documents(source: str, text_field: str) -> Iterator[Document]:
    sources = find_sources(CorpusConfig("prefixes", source, text_field=text_field))
    for block in read_blocks(sources, text_field, _BLOCK_BYTES):
        for document in parse_documents(block, text_field):
            if isinstance(document, BadDocument):
                raise UserError(f"--prefixes {source}: {document}.")
            yield document
