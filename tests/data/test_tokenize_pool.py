"""The pool of worker processes: order, consumption on demand, and errors of dead workers."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.prepare import tokenize_pool
from llama_cpt.data.prepare.layout import PrepareSpec, ShardLayout, iter_spans
from llama_cpt.data.prepare.tokenize_pool import TokenizePool, encode_span
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.tokenizer.document_tokens import DocumentTokens
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.byte_tokenizer import write_byte_tokenizer
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(str(write_byte_tokenizer(tmp_path_factory.mktemp("bytes"), b"th")))


@pytest.fixture
def spans(tmp_path):
    """The spans of a file of 100 documents; each contains two or three documents."""
    lines = (json.dumps({"text": f"{i}: the " + "ab中 " * (7 * i % 31)}) for i in range(100))
    (tmp_path / "zh.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sources = find_sources(CorpusConfig("zh", str(tmp_path / "zh.jsonl")))
    spec = PrepareSpec("zh", "", 31, "text", "error", "", DocumentTokens((256,), 257))
    found = list(iter_spans(sources, spec, ShardLayout(span_bytes=300, shard_bytes=3000)))
    assert len(found) >= 30
    return found


def test_pool_keeps_order_and_consumes_spans_on_demand(spans, tokenizer):
    consumed = []

    def recorded_spans():
        for span in spans:
            consumed.append(span)
            yield span

    with TokenizePool(tokenizer.path, 2) as pool:
        encoded = pool.encode(recorded_spans())
        next(encoded)
        assert len(consumed) <= 2 * tokenize_pool.SPANS_AHEAD + 1
        rest = list(encoded)
    for span, found in zip(spans[1:], rest, strict=True):
        assert np.array_equal(found.tokens, encode_span(tokenizer, span).tokens)


def test_dead_worker_is_a_user_error(spans, tokenizer):
    with TokenizePool(tokenizer.path, 2) as pool:
        for process in pool._processes:
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="worker process .* status -9.*fewer --workers"):
            list(pool.encode(iter(spans)))


def test_workers_do_not_import_jax():
    program = "import sys, llama_cpt.data.prepare.tokenize_pool; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
