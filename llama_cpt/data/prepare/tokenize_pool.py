"""A pool of worker processes that encode text to tokens in order.

Workers run ``serve_worker`` and exchange pickles over standard input and output. The module does
not use ``multiprocessing``: processes that it spawns import the caller's main module, which for
``train`` means JAX and a second of startup each, and processes that it forks inherit JAX's threads,
which may deadlock.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
import os
import pickle
from queue import SimpleQueue
import signal
import subprocess
import sys
import traceback
from types import TracebackType
from typing import Any

import numpy as np

from llama_cpt.data.chat.examples import ChatExample, ChatSpec, encode_chats
from llama_cpt.data.chat.template import template_by_fingerprint
from llama_cpt.data.sources.documents import BadDocument, Block, parse_documents
from llama_cpt.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.runtime.errors import UserError

# Spans per worker that are read and encoded ahead of the next result: enough that a document as
# large as ten spans does not idle the other workers, and few enough to bound the memory.
SPANS_AHEAD = 4
# Decoding costs as much as encoding; a sample of each span is enough to detect a lossy tokenizer.
CHECKED_DOCUMENTS = 16

_WORKER_PROGRAM = "from llama_cpt.data.prepare.tokenize_pool import serve_worker; serve_worker()"


@dataclass(frozen=True)
class Span:
    """A run of consecutive raw documents, encoded as one unit of work."""

    shard: int
    """Index of the shard of these documents."""
    blocks: tuple[Block, ...]
    text_field: str
    skip_bad: bool
    """Skip and count bad documents; otherwise the first one ends the span."""
    chat: ChatSpec | None = None
    """The settings for chat data; None for documents."""

    @property
    def disk_bytes(self) -> float:
        """Size of the span in the sources on disk."""
        return sum((block.disk_bytes for block in self.blocks), 0.0)


@dataclass(frozen=True)
class EncodedSpan:
    """The documents of a span as concatenated tokens, or its chats as examples."""

    shard: int
    disk_bytes: float
    tokens: np.ndarray
    """uint32 (tokens,): BOS, text, EOS of each document; empty for chats."""
    lengths: np.ndarray
    """int64 (documents,): tokens of each document or chat."""
    source_bytes: np.ndarray
    """int64 (documents,): UTF-8 bytes of each document or chat."""
    characters: int
    skipped: Counter
    """Number of bad documents by reason."""
    checked_documents: int
    lossy_documents: int
    failure: str
    """Message of the bad document that ended the span, else empty."""
    examples: list[ChatExample] = field(default_factory=list)
    formats: Counter = field(default_factory=Counter)
    """Number of chats by format."""


def encode_span(tokenizer: Tokenizer, span: Span) -> EncodedSpan:
    """Encode the documents or chats of ``span``."""
    if span.chat:
        return _encode_chats(tokenizer, span, span.chat)
    counts, skipped, failure = Counter(), Counter(), ""
    begin, end = (np.array([one], np.uint32) for one in (tokenizer.bos_id, tokenizer.eos_id))
    arrays, lengths, sizes = [], [], []
    # A tiktoken vocabulary has every byte and no normalizer, so it is never lossy.
    to_check = 0 if tokenizer.kind == "tiktoken" else CHECKED_DOCUMENTS
    for document in (d for block in span.blocks for d in parse_documents(block, span.text_field)):
        if isinstance(document, BadDocument):
            skipped[document.reason] += 1
            if span.skip_bad:
                continue
            failure = str(document)
            break
        tokens = tokenizer.encode_array(document.text)
        arrays += begin, tokens, end
        lengths.append(len(tokens) + 2)
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
    )


def _encode_chats(tokenizer: Tokenizer, span: Span, spec: ChatSpec) -> EncodedSpan:
    template = template_by_fingerprint(tokenizer, spec.template)
    done = encode_chats(template, span.blocks, spec, skip_bad=span.skip_bad)
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
    )


class TokenizePool:
    """A pool of worker processes that encode spans; a context manager that ends them on exit."""

    def __init__(self, tokenizer_path: str, workers: int) -> None:
        self._processes = [_start_worker() for _ in range(workers)]
        self._idle: SimpleQueue = SimpleQueue()
        for process in self._processes:
            pickle.dump(tokenizer_path, process.stdin)
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(workers)
        self._ahead = SPANS_AHEAD * workers

    def encode(self, spans: Iterable[Span]) -> Iterator[EncodedSpan]:
        """Yield the result of each span in the order of ``spans``, which are consumed on demand."""
        waiting: deque[Future] = deque()
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
        process = self._idle.get()
        try:
            pickle.dump(span, process.stdin, protocol=5)
            process.stdin.flush()
            result = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise UserError(
                f"a worker process of prepare exited with status {process.wait()}, perhaps out of "
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
    """Run a worker: read a tokenizer's path and spans from stdin until it ends, write results."""
    # Ctrl-C reaches the whole process group; the parent closes the pipe or kills the worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Output of libraries must not mix with the results.
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


def _start_worker() -> subprocess.Popen:
    # There is one worker per core, so threads inside a library would only compete.
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
