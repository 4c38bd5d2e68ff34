"""Bits per byte of whole held-out documents, computed from log-likelihoods in rolling windows.

A held-out document can be easy to predict if the training text contains a translation of the
document. The task ``bpb_no_counterpart`` therefore includes only documents from sources that the
user lists. The documents of these sources must have no translation in the training text.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
import hashlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
import numpy as np

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.sources.documents import BadDocument, parse_documents, read_blocks
from llama_cpt.data.sources.files import Sources, find_sources
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.evaluation.rolling import rolling_loglikelihood
from llama_cpt.evaluation.scores import (
    BITS_PER_BYTE,
    LINES,
    ExampleScore,
    ScoreWriter,
    start_task,
    unscored,
    write_task,
)
from llama_cpt.generation.decoder import Decoder
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.text_files import text_lines
from llama_cpt.training.heldout import evenly_spaced

logger = logging.getLogger(__name__)

TASK, NO_COUNTERPART = "bpb", "bpb_no_counterpart"
BATCH_TOKENS = 4096
"""Number of tokens per device in a batch, including padding."""


@dataclass(frozen=True)
class HeldoutText:
    """A held-out document to score."""

    corpus: str
    id: str
    """``PATH:NUMBER``: the path of a file, and the line or row of the document, counted from 1.

    NUMBER is 0 if the whole file is one document. PATH omits the leading folders that are common to
    all files of the corpus.
    """
    text: str
    source: str
    """The document's field ``source`` if it is a string, otherwise the name of its file."""
    corpus_digest: str
    """Hash of all documents of the corpus, including documents that are not scored."""


def heldout_texts(corpora: Sequence[CorpusConfig], limit: int | None) -> list[HeldoutText]:
    """Return up to ``limit`` evenly spaced documents per corpus, or all if ``limit`` is None.

    Raises UserError if a corpus has no text or if a selected document cannot be read.
    """
    found = []
    for corpus in corpora:
        sources = find_sources(corpus)
        texts = _fields(sources, corpus.text_field)
        origins = _fields(sources, "source") if _are_lines(sources) else {}
        keys, names = list(texts), _names({path for path, _ in texts})
        digest = _digest([str(texts[key]) for key in keys])
        for index in evenly_spaced(len(keys), limit or len(keys)):
            (path, number), text = keys[index], texts[keys[index]]
            if isinstance(text, BadDocument):
                raise UserError(f"held-out corpus {corpus.name!r}: {text}.")
            origin = origins.get((path, number))
            source = origin if isinstance(origin, str) else Path(path).name
            example_id = f"{names[path]}:{number}"
            found.append(HeldoutText(corpus.name, example_id, text, source, digest))
        if not any(one.corpus == corpus.name and one.text for one in found):
            raise UserError(
                f"held-out corpus {corpus.name!r} has no text ({corpus.source}); set its "
                "source to files with text."
            )
    return found


def score_texts(
    texts: Sequence[HeldoutText],
    decoder: Decoder,
    tokenizer: Tokenizer,
    mesh: Mesh,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    context_id: int,
) -> None:
    """Score the documents that have no score in ``folder`` yet.

    ``settings`` contains the entries of ``text_settings``. The first token of a document is
    predicted from the token ``context_id``, usually BOS. New scores are appended to ``bpb.jsonl``
    in ``folder`` every ``KEEP_SECONDS`` seconds.
    """
    window: int = settings["window"]
    keys = [(text.corpus, text.id) for text in texts]
    pending = [texts[number] for number in unscored(keys, folder, TASK, settings)]
    if not pending:
        return
    ids = tokenizer.encode_batch([one.text for one in pending])
    documents = [np.array([context_id, *one], np.int32) for one in ids]
    total = sum(len(one) for one in ids)
    if is_primary():
        logger.info(
            f"{folder.name} {TASK}: {len(pending):,} documents, {total:,} tokens, in windows of "
            f"{window:,} tokens"
        )
    with (
        Progress(f"{folder.name} {TASK}", float(total), "tokens") as progress,
        ScoreWriter(folder / f"{TASK}{LINES}") as scores,
    ):
        nats = rolling_loglikelihood(
            decoder,
            documents,
            mesh=mesh,
            window=window,
            batch_tokens=BATCH_TOKENS,
            on_scored=progress.update,
        )
        for number, nll in nats:
            if is_primary():
                scores.add(_score(pending[number], nll, len(ids[number])))


def write_no_counterpart(
    folder: Path, sources: Collection[str], settings: Mapping[str, Any]
) -> None:
    """Copy the ``bpb`` scores of documents from ``sources`` to the task ``bpb_no_counterpart``."""
    chosen = [
        replace(score, task=NO_COUNTERPART)
        for score in start_task(folder, TASK, settings)
        if score.detail["source"] in sources
    ]
    write_task(
        folder, NO_COUNTERPART, chosen, dict(settings) | {"sources": _digest(sorted(sources))}
    )


def read_source_names(file: str) -> frozenset[str]:
    """Return the source names in ``file``, which contains one name per line and ``#`` comments.

    Raises UserError if the file does not exist or contains no names.
    """
    if not Path(file).is_file():
        raise UserError(f"{file}: file does not exist; check --no-counterpart.")
    lines = (line.partition("#")[0].strip() for line in text_lines(file))
    if not (names := frozenset(filter(None, lines))):
        raise UserError(
            f"{file} has no sources; write one value of the documents' field 'source' per line."
        )
    return names


def require_known(names: Collection[str], texts: Sequence[HeldoutText], file: str) -> None:
    """Raise UserError if no document has a source in ``names``, which were read from ``file``."""
    sources = {text.source for text in texts}
    if not sources & set(names):
        examples = ", ".join(sorted(sources)[:5])
        raise UserError(
            f"{file}: none of its sources occurs in the held-out documents; write sources such as "
            f"{examples}."
        )


def text_settings(texts: Sequence[HeldoutText], window: int) -> dict[str, Any]:
    """Return the settings of scores of ``texts`` in windows of at most ``window`` tokens."""
    return {"texts": text_fingerprint(texts), "window": window}


def text_fingerprint(texts: Sequence[HeldoutText]) -> str:
    """Return a hash of all documents of the corpora, including documents that are not scored."""
    return _digest(sorted({f"{one.corpus} {one.corpus_digest}" for one in texts}))


def _score(text: HeldoutText, nats: float, tokens: int) -> ExampleScore:
    size = len(text.text.encode("utf-8", "replace"))
    bits = nats / math.log(2) / max(size, 1)
    detail = {"tokens": tokens, "characters": len(text.text), "source": text.source}
    return ExampleScore(
        TASK, text.corpus, text.id, BITS_PER_BYTE, bits, nats=nats, bytes=size, detail=detail
    )


def _fields(sources: Sources, field: str) -> dict[tuple[str, int], str | BadDocument]:
    """Return the field ``field`` of every document, by file path and document number.

    The value for a document that cannot be read is a ``BadDocument``.
    """
    return {
        (one.path, one.number): one if isinstance(one, BadDocument) else one.text
        for block in read_blocks(sources, field, 1 << 20)
        for one in parse_documents(block, field)
    }


def _names(paths: Collection[str]) -> dict[str, str]:
    """Return a dict from each path to the path without the leading folders common to all paths."""
    parts = [path.split("/") for path in paths]
    common = len(os.path.commonprefix([one[:-1] for one in parts]))
    return {path: "/".join(one[common:]) for path, one in zip(paths, parts, strict=True)}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _are_lines(sources: Sources) -> bool:
    return not sources.dataset and all(".json" in Path(path).name for path in sources.files)
