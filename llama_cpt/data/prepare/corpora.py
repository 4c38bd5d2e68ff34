"""Preparation of all corpora of a config: missing ones are prepared, stale ones are an error."""

from collections.abc import Callable, Iterable, Mapping
import contextlib
from dataclasses import asdict, dataclass, replace
from functools import partial
import os
import re
import sys
from typing import Any

from etils import epath
import numpy as np

from llama_cpt.config.schema import CorpusConfig, DataConfig, NextTokenConfig, PreferenceConfig
from llama_cpt.data.chat.examples import ChatSpec, make_chat_spec
from llama_cpt.data.chat.template import load_chat_template
from llama_cpt.data.packed_rows import PackedRows, open_packed_rows
from llama_cpt.data.prepare.layout import PrepareJob, PrepareSpec, ShardLayout, make_layout
from llama_cpt.data.prepare.shards import Encode, write_corpus
from llama_cpt.data.prepare.tokenize_pool import TokenizePool, encode_span
from llama_cpt.data.rows import Manifest, TokenRows, read_manifest, write_manifest
from llama_cpt.data.sources.files import (
    TFDS,
    describe_changes,
    find_sources,
    was_matched,
    with_digests,
)
from llama_cpt.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.output_folder import file_lock
from llama_cpt.runtime.storage import check_reachable

HELDOUT = "heldout"

# Prepares several corpora at once with a tokenizer.
WriteAll = Callable[[list[PrepareJob], Tokenizer], None]

# Size of sources below which starting worker processes takes longer than they save.
POOL_BYTES = 4 << 20


@dataclass(frozen=True)
class PreparedCorpora:
    """The prepared corpora of a config, ready to read."""

    config: DataConfig
    rows: dict[str, Manifest]
    heldout: dict[str, Manifest]

    def lossy(self) -> list[str]:
        """Return a message for each corpus whose text the tokenizer changes."""
        groups = (self.rows.values(), self.heldout.values())
        return [message for group in groups for m in group if (message := m.lossy())]

    def folder(self, name: str) -> str:
        """Return the folder of a training corpus."""
        return str(_folder(self.config, name, heldout=False))

    def heldout_folder(self, name: str) -> str:
        """Return the folder of a held-out corpus."""
        return str(_folder(self.config, name, heldout=True))

    def fingerprints(self) -> dict[str, Any]:
        """Return fingerprints of all corpora by group and name; they do not depend on paths."""
        manifests = {"data": self.rows, "heldout": self.heldout}
        return {
            group: {name: manifest.fingerprint for name, manifest in members.items()}
            for group, members in manifests.items()
        }


def prepare(
    config: DataConfig,
    workers: int | None = None,
    *,
    objective: NextTokenConfig | PreferenceConfig | None = None,
    write_missing: WriteAll | None = None,
) -> PreparedCorpora:
    """Prepare the missing corpora and return all; the shards are the same for any ``workers``.

    ``write_missing`` prepares the missing corpora, all together, instead of this process.
    ``objective``, by default next-token prediction, decides how chat data is packed.

    A call after a kill resumes at the unfinished shard; a concurrent second call waits. Raises
    UserError for bad sources, and for a prepared corpus whose sources, tokenizer, row length or
    text field have changed: runs may depend on it, so it is never replaced.
    """
    _check_names(config)
    check_reachable(config.prepared)
    tokenizer = load_tokenizer(config.tokenizer)
    chat = None
    if config.chat:
        template = load_chat_template(tokenizer, config.chat.template)
        chat = make_chat_spec(config.chat, template, objective or NextTokenConfig())
    if write_missing:
        _write_missing(config, tokenizer, chat, write_missing)
    with contextlib.ExitStack() as stack:
        encoders = _EncoderPool(stack, tokenizer, workers)

        def manifests(corpora: Iterable[CorpusConfig], make: Callable) -> dict[str, Manifest]:
            return {corpus.name: make(config, corpus, encoders) for corpus in corpora}

        rows = manifests(config.additional + config.original, partial(_corpus, chat=chat))
        heldout = manifests(config.heldout, partial(_corpus, heldout=True))
        prepared = PreparedCorpora(config, rows, heldout)
    _warn_of_overlap(prepared)
    return prepared


def open_rows(
    prepared: PreparedCorpora, references: Mapping[str, np.ndarray] | None = None
) -> tuple[TokenRows, ...] | tuple[PackedRows, ...]:
    """Return the training corpora in the order of the mixture.

    ``references`` holds by corpus the answers' log-probabilities under the reference model, as in
    ``PackedRows``; a missing corpus gets zeros.
    """
    folders = {name: prepared.folder(name) for name in prepared.rows}
    if prepared.config.chat is None:
        return tuple(TokenRows(folder) for folder in folders.values())
    known = [(references or {}).get(name) for name in folders]
    return open_packed_rows(list(folders.values()), known)


class _EncoderPool:
    """Encoders by size of a corpus; the pool of processes starts on first use."""

    def __init__(
        self, stack: contextlib.ExitStack, tokenizer: Tokenizer, workers: int | None
    ) -> None:
        self.tokenizer = tokenizer
        self._stack, self._workers = stack, workers
        self._pool: TokenizePool | None = None

    def for_size(self, source_bytes: float) -> Encode:
        """Return the pool for large sources, this process for small ones; tokens are equal."""
        workers = self._workers or (_cores() if source_bytes > POOL_BYTES else 1)
        if workers == 1:
            return partial(map, partial(encode_span, self.tokenizer))
        if self._pool is None:
            self._pool = self._stack.enter_context(TokenizePool(self.tokenizer.path, workers))
        return self._pool.encode


def _corpus(
    config: DataConfig,
    corpus: CorpusConfig,
    encoders: _EncoderPool,
    *,
    chat: ChatSpec | None = None,
    heldout: bool = False,
) -> Manifest:
    folder = _folder(config, corpus.name, heldout=heldout)
    spec = _make_spec(config, corpus, encoders.tokenizer, chat, heldout=heldout)
    found = read_manifest(str(folder))
    if found is None:
        with _locked(folder):
            # Another process may have prepared it while this one waited for the lock.
            found = read_manifest(str(folder))
            if found is None:
                job = _make_job(folder, corpus, spec)
                return write_corpus(job, encoders.for_size(job.megabytes * 1e6))
    _check_current(folder, corpus, spec, found)
    return found


def _write_missing(
    config: DataConfig, tokenizer: Tokenizer, chat: ChatSpec | None, write: WriteAll
) -> None:
    """Prepare the missing corpora with one call of ``write``."""
    required = {}
    for corpus in config.additional + config.original:
        spec = _make_spec(config, corpus, tokenizer, chat, heldout=False)
        required[_folder(config, corpus.name, heldout=False)] = corpus, spec
    for corpus in config.heldout:
        spec = _make_spec(config, corpus, tokenizer, None, heldout=True)
        required[_folder(config, corpus.name, heldout=True)] = corpus, spec
    jobs = []
    with contextlib.ExitStack() as stack:
        for folder in sorted(required):  # A fixed order prevents deadlock between processes.
            if read_manifest(str(folder)) is None:
                stack.enter_context(_locked(folder))
                if read_manifest(str(folder)) is None:
                    jobs.append(_make_job(folder, *required[folder]))
        if jobs:
            write(jobs, tokenizer)


def _make_spec(
    config: DataConfig,
    corpus: CorpusConfig,
    tokenizer: Tokenizer,
    chat: ChatSpec | None,
    *,
    heldout: bool,
) -> PrepareSpec:
    return PrepareSpec(
        corpus=corpus.name,
        tokenizer=tokenizer.fingerprint,
        sequence_length=0 if heldout else config.sequence_length,
        text_field=corpus.text_field,
        bad_documents=config.bad_documents,
        dataset=corpus.source if corpus.source.startswith(TFDS) else "",
        chat=chat,
    )


def _locked(folder: epath.Path) -> contextlib.AbstractContextManager[None]:
    """Return a context manager that waits for the exclusive lock of ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    message = f"{folder}: waiting for another process that prepares it"
    return file_lock(folder.parent / f".{folder.name}.lock", message, wait=True)


def _make_job(folder: epath.Path, corpus: CorpusConfig, spec: PrepareSpec) -> PrepareJob:
    sources = find_sources(corpus)
    digests = with_digests(corpus.name, sources.stats())
    source_bytes = sum(source["bytes"] for source in digests)
    layout = make_layout(source_bytes, spec.sequence_length)
    if spec.chat and spec.chat.kind == "unpaired":
        # One shard, because an answer's mismatch is the next answer of the corpus, and the last
        # answer's is the first.
        layout = ShardLayout(layout.span_bytes, 1 << 62)
    return PrepareJob(folder, sources, spec, digests, layout)


def _check_current(
    folder: epath.Path, corpus: CorpusConfig, spec: PrepareSpec, found: Manifest
) -> None:
    """Raise UserError if a prepared corpus does not match the config or its sources any more."""
    made, required = (_flatten({f: getattr(one, f) for f in asdict(spec)}) for one in (found, spec))
    changed = [
        f"{field} was {made.get(field)!r}, is {required.get(field)!r}"
        for field in required | made
        if made.get(field) != required.get(field)
        # If nothing was skipped, both settings give the same rows.
        and (field != "bad_documents" or found.skipped)
    ]
    if not changed:
        try:
            sources = find_sources(corpus)
        except UserError as error:
            if not all(was_matched(source["path"], corpus.source) for source in found.sources):
                raise UserError(
                    f"{error} The rows in {folder} were prepared from different files."
                ) from None
            print(
                f"note: {error} The rows in {folder} are used as they were prepared.",
                file=sys.stderr,
            )
            return
        now = sources.stats()
        changed = [change] if (change := describe_changes(now, found.sources)) else []
    if changed:
        raise UserError(
            f"{folder} was prepared with other settings or sources: {'; '.join(changed)}. Set "
            f"another data.prepared, or delete {folder} to prepare it again (runs that read it "
            "then cannot resume)."
        )
    same = [new | {"digest": old["digest"]} for new, old in zip(now, found.sources, strict=True)]
    if same != found.sources:
        # Files were moved or touched: record that, so that the next start need not read them again.
        with _locked(folder):
            write_manifest(str(folder), replace(found, sources=same))


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec, with those of its ``chat`` as ``chat.NAME``."""
    chat = values.pop("chat") or {}
    fields = chat if isinstance(chat, dict) else asdict(chat)
    return values | {f"chat.{name}": value for name, value in fields.items()}


def _warn_of_overlap(prepared: PreparedCorpora) -> None:
    """Print a warning for each held-out source that is also trained on."""
    if not is_primary():
        return
    trained_on = {
        source["digest"]: name
        for name, manifest in prepared.rows.items()
        for source in manifest.sources
    }
    for name, manifest in prepared.heldout.items():
        for source in manifest.sources:
            if source["digest"] in trained_on:
                print(
                    f"warning: held-out corpus {name!r} and corpus "
                    f"{trained_on[source['digest']]!r} share {source['path']}; its loss is "
                    "not a measure for new text.",
                    file=sys.stderr,
                )


def _check_names(config: DataConfig) -> None:
    for corpus in config.additional + config.original + config.heldout:
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", corpus.name) or corpus.name == HELDOUT:
            raise UserError(
                f"data: corpus name {corpus.name!r} must be a folder name; use letters, digits and "
                f"any of ._+-, and not {HELDOUT!r}."
            )


def _folder(config: DataConfig, name: str, *, heldout: bool) -> epath.Path:
    prepared = epath.Path(config.prepared)
    return prepared / HELDOUT / name if heldout else prepared / name


def _cores() -> int:
    # Not cpu_count: a container or a job may have fewer cores than the machine.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
