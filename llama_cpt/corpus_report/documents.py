"""The documents of a corpus with their positions; the text of a chat is the text of its turns."""

from collections.abc import Iterator
from typing import NamedTuple

from llama_cpt.config.chat import ChatConfig
from llama_cpt.data.chat.conversations import InvalidRecordError, all_text
from llama_cpt.data.chat.formats import drop_fields, read_record
from llama_cpt.data.sources.blocks import Block
from llama_cpt.data.sources.documents import BadDocument, parse_documents, read_blocks
from llama_cpt.data.sources.files import Sources
from llama_cpt.data.sources.json_records import parse_records, read_record_blocks

_BLOCK_BYTES = 1 << 20


class ScannedDocument(NamedTuple):
    """A document or a chat, and its position in the sources."""

    path: str
    number: int
    """Line, row or element of the document, with the same values as ``Document.number``."""
    text: str
    """The text; for a chat, the texts of the turns, joined by line feeds."""
    source_bytes: int
    """UTF-8 bytes of the text or of all turns, as in the manifest of prepared rows."""
    characters: int
    """Characters of the text or of all turns."""
    identity: bytes
    """Equal for exact duplicates only: the text; for a chat, everything that training reads, which
    is the role, text and flag of each turn, and the label of a rated answer."""


def read_documents(
    sources: Sources, text_field: str, chat: ChatConfig | None = None
) -> Iterator[tuple[float, ScannedDocument | BadDocument]]:
    """Yield the documents of a corpus, or its chats if ``chat`` is not None.

    The first item of a pair is the number of bytes of the source files that are done since the
    previous pair.
    """
    if chat is None:
        blocks = read_blocks(sources, text_field, _BLOCK_BYTES)
    else:
        blocks = read_record_blocks(sources, _BLOCK_BYTES)
    for block in blocks:
        done = block.disk_bytes
        found = _chats(block, chat) if chat else _texts(block, text_field)
        for document in found:
            yield done, document
            done = 0.0


def _texts(block: Block, text_field: str) -> Iterator[ScannedDocument | BadDocument]:
    """Yield each document in ``block``."""
    for document in parse_documents(block, text_field):
        if isinstance(document, BadDocument):
            yield document
        else:
            yield ScannedDocument(*document, len(document.text), document.text.encode())


def _chats(block: Block, chat: ChatConfig) -> Iterator[ScannedDocument | BadDocument]:
    """Yield each chat in ``block``."""
    for record in parse_records(block):
        if isinstance(record, BadDocument):
            yield record
            continue
        try:
            values, _ = drop_fields(record.values, chat.drop_fields)
            _, found = read_record(values)
        except InvalidRecordError as error:
            yield BadDocument(record.path, record.number, error.reason, error.detail)
            continue
        texts = all_text(found)
        yield ScannedDocument(
            record.path,
            record.number,
            "\n".join(texts),
            sum(len(text.encode()) for text in texts),
            sum(map(len, texts)),
            repr(found).encode(),
        )
