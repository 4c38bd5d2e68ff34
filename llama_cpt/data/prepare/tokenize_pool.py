"""A pool of worker processes that encode text to tokens, with results in the order of the text.

Workers run ``serve_worker`` and exchange pickles with this process over standard input and output.
The module does not use ``multiprocessing``. A process that ``multiprocessing`` spawns imports the
main module of the caller; the main module of ``train`` imports JAX, which takes a second. A process
that ``multiprocessing`` forks inherits the locks of JAX's threads and can deadlock.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
import os
import pickle
from queue import SimpleQueue
import signal
import subprocess
import sys
import traceback
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from llama_cpt.data.chat.examples import ChatExample, ChatSpec, encode_chats
from llama_cpt.data.chat.template import template_by_fingerprint
from llama_cpt.data.rows import DOCUMENT_START
from llama_cpt.data.sources.documents import BadDocument, Block, Document, parse_documents
from llama_cpt.data.sources.json_records import Record, parse_records
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.document_tokens import DocumentTokens
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError

Parsed = TypeVar("Parsed", Document | BadDocument, Record | BadDocument)

# Number of spans per worker that are read and encoded ahead of the next result. While one worker
# encodes a large document, the other workers encode spans after it; the number bounds the memory.
SPANS_AHEAD = 4
# Number of documents per span that are decoded again to detect a lossy tokenizer. Decoding takes as
# long as encoding, so only a sample is decoded.
CHECKED_DOCUMENTS = 16

_WORKER_PROGRAM = "from llama_cpt.data.prepare.tokenize_pool import serve_worker; serve_worker()"


@dataclass(frozen=True)
class Span:
    """Consecutive raw documents of a shard, which a worker process encodes together."""

    shard: int
    """Index of the shard."""
    blocks: tuple[Block, ...]
    text_field: str
    skip_bad: bool
    """True to skip and count bad documents; False to stop encoding at the first bad document."""
    document_tokens: DocumentTokens | None = None
    """The tokens before and after each document; None for chat data."""
    chat: ChatSpec | None = None
    """The settings for chat data; None for documents."""
    dropped: tuple[Mapping[int, str], ...] = ()
    """Reasons of the documents that are left out, by number, for each block; or empty."""

    def documents(
        self, parse: Callable[[Block], Iterator[Parsed]], dropped: Counter[str]
    ) -> Iterator[Parsed]:
        """Yield the parsed documents that are not left out; add the others to ``dropped``."""
        for block, reasons in zip(self.blocks, self.dropped or repeat({}), strict=False):
            for document in parse(block):
                if document.number in reasons:
                    dropped[reasons[document.number]] += 1
                else:
                    yield document

    @property
    def disk_bytes(self) -> float:
        """Number of bytes that the span takes in the source files, which can be compressed."""
        return sum((block.disk_bytes for block in self.blocks), 0.0)


@dataclass(frozen=True)
class EncodedSpan:
    """The documents of a span as concatenated tokens, or the chats of a span as examples."""

    shard: int
    disk_bytes: float
    tokens: np.ndarray
    """uint32 (tokens,): each document with its ``document_tokens``; empty for chats. The first
    token of a document is marked with ``DOCUMENT_START``."""
    lengths: np.ndarray
    """int64 (documents,): number of tokens of each document or chat."""
    source_bytes: np.ndarray
    """int64 (documents,): UTF-8 bytes of the text of each document or chat."""
    characters: int
    skipped: Counter[str]
    """Number of bad documents by reason."""
    checked_documents: int
    lossy_documents: int
    failure: str
    """Message about the bad document at which encoding stopped; empty if it did not stop early."""
    examples: list[ChatExample] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    """Number of chats by format."""
    dropped_fields: Counter[str] = field(default_factory=Counter)
    """Number of chats in which a field of ``data.chat.drop_fields`` had content, by field."""
    dropped_documents: Counter[str] = field(default_factory=Counter)
    """Number of documents that are left out although they are valid, by reason."""


def encode_span(tokenizer: Tokenizer, span: Span) -> EncodedSpan:
    """Return the documents or chats of ``span``, encoded with ``tokenizer``."""
    if span.chat:
        return _encode_chats(tokenizer, span, span.chat)
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    failure = ""
    assert span.document_tokens is not None, "a span of documents needs document_tokens"
    begin = np.array(span.document_tokens.begin, np.uint32)
    end = np.array([span.document_tokens.end], np.uint32)
    arrays, lengths, sizes = [], [], []
    # A tiktoken vocabulary contains every byte and has no normalizer, so it is never lossy.
    to_check = 0 if tokenizer.kind == "tiktoken" else CHECKED_DOCUMENTS
    dropped: Counter[str] = Counter()
    for document in span.documents(partial(parse_documents, text_field=span.text_field), dropped):
        if isinstance(document, BadDocument):
            skipped[document.reason] += 1
            if span.skip_bad:
                continue
            failure = str(document)
            break
        tokens = tokenizer.encode_array(document.text)
        whole = np.concatenate([begin, tokens, end])
        whole[0] |= DOCUMENT_START
        arrays.append(whole)
        lengths.append(len(whole))
        sizes.append(document.source_bytes)
        counts["characters"] += len(document.text)
        if len(sizes) <= to_check:
            counts["lossy"] += tokenizer.decode(tokens.tolist()) != document.text
    return EncodedSpan(
        span.shard,
        span.disk_bytes,
        np.concatenate([np.zeros(0, np.uint32), *arrays]),
        np.array(lengths, np.int64),
        np.array(sizes, np.int64),
        counts["characters"],
        skipped,
        min(len(sizes), to_check),
        counts["lossy"],
        failure,
        dropped_documents=dropped,
    )


def _encode_chats(tokenizer: Tokenizer, span: Span, spec: ChatSpec) -> EncodedSpan:
    """Return the chats of ``span`` as tokenized examples."""
    template = template_by_fingerprint(tokenizer, spec.template)
    dropped: Counter[str] = Counter()
    records = span.documents(parse_records, dropped)
    done = encode_chats(template, records, spec, skip_bad=span.skip_bad)
    return EncodedSpan(
        span.shard,
        span.disk_bytes,
        np.zeros(0, np.uint32),
        np.array(done.tokens, np.int64),
        np.array(done.source_bytes, np.int64),
        done.characters,
        done.skipped,
        0,
        0,
        done.failure,
        done.examples,
        done.formats,
        done.dropped_fields,
        dropped,
    )


class TokenizePool:
    """A pool of worker processes that encode spans; the processes end when its context exits."""

    def __init__(self, tokenizer_path: str, workers: int) -> None:
        self._processes = [_start_worker() for _ in range(workers)]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._processes:
            assert process.stdin is not None
            pickle.dump(tokenizer_path, process.stdin)
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(workers)
        self._ahead = SPANS_AHEAD * workers

    def encode(self, spans: Iterable[Span]) -> Iterator[EncodedSpan]:
        """Yield the encoded spans in the order of ``spans``, which are consumed on demand."""
        waiting: deque[Future[EncodedSpan]] = deque()
        try:
            for span in spans:
                waiting.append(self._threads.submit(self._encode, span))
                while waiting and (len(waiting) >= self._ahead or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _encode(self, span: Span) -> EncodedSpan:
        """Encode ``span`` in an idle worker process; raise UserError if that process exits."""
        process = self._idle.get()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(span, process.stdin, protocol=5)
            process.stdin.flush()
            result = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise UserError(
                f"a worker process of prepare exited with status {process.wait()}, possibly out of "
                "memory. Finished shards are kept; run again with fewer --workers."
            ) from None
        finally:
            self._idle.put(process)
        if isinstance(result, str):
            raise RuntimeError(f"a worker failed:\n{result}")
        return result

    def __enter__(self) -> "TokenizePool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()


def serve_worker() -> None:
    """Run a worker process.

    The process reads the path of a tokenizer and then spans from stdin until stdin is closed, and
    writes the encoded spans to stdout.
    """
    # Ctrl-C sends SIGINT to workers as well; the parent process decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Text that libraries print must not mix with results.
    tokenizer = load_tokenizer(pickle.load(requests))
    while True:
        try:
            span = pickle.load(requests)
        except EOFError:
            return
        try:
            result: Any = encode_span(tokenizer, span)
        except Exception:
            result = traceback.format_exc()
        pickle.dump(result, results, protocol=5)
        results.flush()


def _start_worker() -> subprocess.Popen[bytes]:
    """Start a worker process that imports modules from the same paths as this process."""
    # There is one worker per core, so threads of a library would only compete for the cores.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER_PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
