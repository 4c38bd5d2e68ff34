"""Real conversations, which are not part of the repository."""

from collections.abc import Iterator
import gzip
import json
from pathlib import Path

from llama_cpt.data.chat.conversations import Conversation, InvalidRecordError
from llama_cpt.data.chat.formats import read_record


def real_chats(shared_data: Path, every: int) -> Iterator[Conversation]:
    """Yield the conversation in one of ``every`` records of each file, except invalid records."""
    for path in sorted((shared_data / "sft").rglob("*.json*")):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        array = text.lstrip().startswith("[")
        records = json.loads(text) if array else list(map(json.loads, text.splitlines()))
        for record in records[::every]:
            try:
                chat = read_record(record)[1]
            except InvalidRecordError:
                continue
            assert isinstance(chat, Conversation)
            yield chat
