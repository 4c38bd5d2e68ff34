"""Preparation of all corpora of a config, and checks that prepared corpora are up to date."""

from collections.abc import Callable, Iterable, Mapping
import contextlib
from dataclasses import asdict, dataclass, replace
from functools import partial
import logging
import os
import re
from typing import Any

from etils import epath
import numpy as np

from llama_cpt.config.schema import CorpusConfig, DataConfig, NextTokenConfig, PreferenceConfig
from llama_cpt.data.chat.examples import ChatSpec, make_chat_spec
from llama_cpt.data.chat.template import load_chat_template
from llama_cpt.data.packed_rows import PackedRows, open_packed_rows
from llama_cpt.data.prepare.dropped import NOTHING_DROPPED, DroppedLists, read_dropped
from llama_cpt.data.prepare.former_rows import accept_former
from llama_cpt.data.prepare.layout import PrepareJob, PrepareSpec, ShardLayout, make_layout
from llama_cpt.data.prepare.left_out import check_left_out
from llama_cpt.data.prepare.shards import Encode, write_corpus
from llama_cpt.data.prepare.tokenize_pool import TokenizePool, encode_span
from llama_cpt.data.prepare.turn_markers import warn_of_turn_markers
from llama_cpt.data.rows import (
    VERSION,
    HeldoutDocuments,
    Manifest,
    TokenRows,
    read_manifest,
    write_manifest,
)
from llama_cpt.data.sources.files import (
    TFDS,
    describe_changes,
    find_sources,
    was_matched,
    with_digests,
)
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.document_tokens import document_tokens
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.output_folder import file_lock
from llama_cpt.runtime.storage import check_reachable

logger = logging.getLogger(__name__)

HELDOUT = "heldout"

# A function that prepares several corpora in one call.
WriteAll = Callable[[list[PrepareJob], Tokenizer], None]

# Smaller sources are encoded in this process: starting worker processes would take more time than
# the workers save.
POOL_BYTES = 4 << 20


@dataclass(frozen=True)
class PreparedCorpora:
    """The config of a run's data and the manifests of its prepared corpora."""

    config: DataConfig
    rows: dict[str, Manifest]
    """Manifest of each training corpus, by name."""
    heldout: dict[str, Manifest]
    """Manifest of each held-out corpus, by name."""

    def lossy(self) -> list[str]:
        """Return a message for each corpus with text that encoding and decoding change."""
        groups = (self.rows.values(), self.heldout.values())
        return [message for group in groups for m in group if (message := m.lossy())]

    def folder(self, name: str) -> str:
        """Return the folder of the training corpus ``name``."""
        return str(_folder(self.config, name, heldout=False))

    def heldout_folder(self, name: str) -> str:
        """Return the folder of the held-out corpus ``name``."""
        return str(_folder(self.config, name, heldout=True))

    def fingerprints(self) -> dict[str, Any]:
        """Return ``{"data": {name: fingerprint}, "heldout": {name: fingerprint}}``.

        Fingerprints do not depend on paths.
        """
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
    """Prepare the corpora of ``config`` that are not prepared yet, and return all corpora.

    ``workers`` is the number of worker processes, which does not affect the shards. None means one
    worker process per core for large corpora, and no worker processes for small corpora. If
    ``write_missing`` is not None, one call of ``write_missing`` prepares all missing corpora.
    ``objective`` determines how chat data is packed; None means next-token prediction.

    If an earlier call was killed, preparation resumes at the first unfinished shard. If another
    process is preparing the same corpus, the call waits. Raises UserError if a source is invalid,
    or if the sources, tokenizer, row length or text field of a prepared corpus have changed. A
    prepared corpus is never replaced, because runs can depend on it.
    """
    _check_names(config)
    check_reachable(config.prepared)
    tokenizer = load_tokenizer(config.tokenizer)
    chat = None
    if config.chat and config.corpora_of("conversations"):
        template = load_chat_template(tokenizer, config.chat.template)
        chat = make_chat_spec(config.chat, template, objective or NextTokenConfig())
    if config.corpora_of("documents") and config.document_tokens is None and is_primary():
        warn_of_turn_markers(tokenizer)
    lists = read_dropped(config.prepared)
    if write_missing:
        _write_missing(config, tokenizer, chat, write_missing, lists)
    with contextlib.ExitStack() as stack:
        encoders = _EncoderPool(stack, tokenizer, workers)

        def manifests(
            corpora: Iterable[CorpusConfig], make: Callable[..., Manifest]
        ) -> dict[str, Manifest]:
            return {corpus.name: make(config, corpus, encoders) for corpus in corpora}

        make = partial(_corpus, lists=lists)
        rows = manifests(config.additional + config.original, partial(make, chat=chat))
        heldout = manifests(config.heldout, partial(make, heldout=True))
        prepared = PreparedCorpora(config, rows, heldout)
    _warn_of_overlap(prepared)
    check_left_out(prepared.rows, prepared.heldout, config.chat, warn=is_primary())
    return prepared


def open_rows(
    prepared: PreparedCorpora, references: Mapping[str, np.ndarray] | None = None
) -> tuple[TokenRows | PackedRows, ...]:
    """Return the rows of the training corpora in the order of their indices.

    ``references`` maps names of corpora to log-probabilities of the answers under the reference
    model, as in ``PackedRows``. Corpora that are not in ``references`` get zeros.
    """
    chats = [name for name, manifest in prepared.rows.items() if manifest.chat]
    known = [(references or {}).get(name) for name in chats]
    packed = open_packed_rows([prepared.folder(name) for name in chats], known)
    opened = dict(zip(chats, packed, strict=True))
    return tuple(
        opened[name] if name in opened else TokenRows(prepared.folder(name))
        for name in prepared.rows
    )


def open_heldout(config: DataConfig) -> dict[str, HeldoutDocuments]:
    """Return the prepared held-out documents of each corpus, by name.

    Raises UserError if a corpus is not prepared.
    """
    names = (corpus.name for corpus in config.heldout)
    return {name: HeldoutDocuments(str(_folder(config, name, heldout=True))) for name in names}


class _EncoderPool:
    """Encoders for small and large corpora, with worker processes that start on first use."""

    def __init__(
        self, stack: contextlib.ExitStack, tokenizer: Tokenizer, workers: int | None
    ) -> None:
        self.tokenizer = tokenizer
        self._stack, self._workers = stack, workers
        self._pool: TokenizePool | None = None

    def for_size(self, source_bytes: float) -> Encode:
        """Return a function that encodes spans, in worker processes if the sources are large.

        The tokens are the same with and without worker processes.
        """
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
    lists: DroppedLists,
    chat: ChatSpec | None = None,
    heldout: bool = False,
) -> Manifest:
    """Return the manifest of ``corpus``, and prepare the corpus if it has no manifest yet."""
    folder = _folder(config, corpus.name, heldout=heldout)
    spec = _make_spec(config, corpus, encoders.tokenizer, chat, lists, heldout=heldout)
    found = read_manifest(str(folder))
    if found is None:
        with _locked(folder):
            # Another process may have prepared the corpus while this process waited for the lock.
            found = read_manifest(str(folder))
            if found is None:
                job = _make_job(folder, corpus, spec, lists)
                return write_corpus(job, encoders.for_size(job.megabytes * 1e6))
    if found.version < VERSION:
        with _locked(folder):
            found = accept_former(folder, found, spec, encoders.tokenizer)
    _check_current(folder, corpus, spec, found)
    return found


def _write_missing(
    config: DataConfig,
    tokenizer: Tokenizer,
    chat: ChatSpec | None,
    write: WriteAll,
    lists: DroppedLists,
) -> None:
    """Prepare all corpora that are not prepared yet with one call of ``write``."""
    required = {}
    for corpus in config.additional + config.original:
        spec = _make_spec(config, corpus, tokenizer, chat, lists, heldout=False)
        required[_folder(config, corpus.name, heldout=False)] = corpus, spec
    for corpus in config.heldout:
        spec = _make_spec(config, corpus, tokenizer, None, lists, heldout=True)
        required[_folder(config, corpus.name, heldout=True)] = corpus, spec
    jobs = []
    with contextlib.ExitStack() as stack:
        for folder in sorted(required):  # A fixed order prevents deadlock between processes.
            if read_manifest(str(folder)) is None:
                stack.enter_context(_locked(folder))
                if read_manifest(str(folder)) is None:
                    corpus, spec = required[folder]
                    jobs.append(_make_job(folder, corpus, spec, lists))
        if jobs:
            write(jobs, tokenizer)


def _make_spec(
    config: DataConfig,
    corpus: CorpusConfig,
    tokenizer: Tokenizer,
    chat: ChatSpec | None,
    lists: DroppedLists,
    *,
    heldout: bool,
) -> PrepareSpec:
    """Return the settings on which the rows of ``corpus`` depend.

    ``chat`` applies only if ``corpus`` contains conversations.
    """
    chat = chat if config.kind_of(corpus) == "conversations" else None
    around = document_tokens(tokenizer, config.document_tokens)
    return PrepareSpec(
        corpus=corpus.name,
        tokenizer=tokenizer.fingerprint,
        sequence_length=0 if heldout else config.sequence_length,
        text_field=corpus.text_field,
        bad_documents=config.bad_documents,
        dataset=corpus.source if corpus.source.startswith(TFDS) else "",
        document_tokens=None if chat else around.for_heldout if heldout else around,
        chat=chat,
        dropped="" if heldout else lists.of(corpus.name).digest,
    )


def _locked(folder: epath.Path) -> contextlib.AbstractContextManager[None]:
    """Return a context manager that waits for an exclusive lock on ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    message = f"{folder}: waiting for another process that is preparing this corpus"
    return file_lock(folder.parent / f".{folder.name}.lock", message, wait=True)


def _make_job(
    folder: epath.Path, corpus: CorpusConfig, spec: PrepareSpec, lists: DroppedLists
) -> PrepareJob:
    """Find and hash the sources of ``corpus``; return the job that prepares it in ``folder``."""
    sources = find_sources(corpus)
    # The files were read for the list of documents that are left out.
    known = lists.sources.get(corpus.name, ()) if spec.sequence_length else ()
    digests = with_digests(corpus.name, sources.stats(), known)
    if spec.sequence_length:
        lists.check_sources(corpus.name, digests)
    source_bytes = sum(source["bytes"] for source in digests)
    layout = make_layout(source_bytes, spec.sequence_length)
    if spec.chat and spec.chat.kind == "unpaired":
        # KTO needs a single shard: mismatched completions combine a prompt with the next answer in
        # the corpus, and the last prompt with the first answer.
        layout = ShardLayout(layout.span_bytes, 1 << 62)
    dropped = lists.of(corpus.name) if spec.dropped else NOTHING_DROPPED
    return PrepareJob(folder, sources, spec, digests, layout, dropped)


def _check_current(
    folder: epath.Path, corpus: CorpusConfig, spec: PrepareSpec, found: Manifest
) -> None:
    """Raise UserError if a prepared corpus no longer matches the config or its source files."""
    names = asdict(spec)
    made, required = (
        _flatten({name: getattr(one, name) for name in names}) for one in (found, spec)
    )
    changed = [
        f"{field} was {made.get(field)!r}, is {required.get(field)!r}"
        for field in required | made
        if made.get(field) != required.get(field)
        # If no document was skipped, the rows do not depend on bad_documents.
        and (field != "bad_documents" or found.skipped)
    ]
    if bool(found.chat) != bool(spec.chat):
        kinds = [found.chat and found.chat["kind"], spec.chat and spec.chat.kind]
        changed = ["kind was {!r}, is {!r}".format(*(kind or "documents" for kind in kinds))]
    if not changed:
        try:
            sources = find_sources(corpus)
        except UserError as error:
            if not all(was_matched(source["path"], corpus.source) for source in found.sources):
                raise UserError(
                    f"{error} The rows in {folder} were prepared from different files."
                ) from None
            logger.warning(f"{error} The rows in {folder} are used as they were prepared.")
            return
        now = sources.stats()
        changed = [change] if (change := describe_changes(now, found.sources)) else []
    if changed:
        raise UserError(
            f"{folder} was prepared with other settings or sources: {'; '.join(changed)}. Set "
            f"data.prepared to a new folder, or delete {folder} to prepare the corpus again. Runs "
            "that used the deleted rows cannot resume."
        )
    same = [new | {"digest": old["digest"]} for new, old in zip(now, found.sources, strict=True)]
    if same != found.sources:
        # Files were moved or touched. Their new stats are stored, so that the next launch does not
        # read the files again.
        with _locked(folder):
            write_manifest(str(folder), replace(found, sources=same))


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec, with each field of its ``chat`` renamed to ``chat.NAME``."""
    chat = values.pop("chat") or {}
    fields = chat if isinstance(chat, dict) else asdict(chat)
    return values | {f"chat.{name}": value for name, value in fields.items()}


def _warn_of_overlap(prepared: PreparedCorpora) -> None:
    """Log a warning for each held-out source file that is also used for training."""
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
                logger.warning(
                    f"held-out corpus {name!r} and corpus {trained_on[source['digest']]!r} share "
                    f"{source['path']}; the held-out loss does not measure the loss on new text."
                )


def _check_names(config: DataConfig) -> None:
    """Raise UserError if the name of a corpus cannot be the name of its folder."""
    for corpus in config.additional + config.original + config.heldout:
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", corpus.name) or corpus.name == HELDOUT:
            raise UserError(
                f"data: corpus name {corpus.name!r} must be a folder name of letters, digits and "
                f"any of ._+-, and not {HELDOUT!r}; rename the corpus."
            )


def _folder(config: DataConfig, name: str, *, heldout: bool) -> epath.Path:
    """Return the folder of the corpus ``name`` below ``config.prepared``."""
    prepared = epath.Path(config.prepared)
    return prepared / HELDOUT / name if heldout else prepared / name


def _cores() -> int:
    """Return the number of cores that this process can use."""
    # cpu_count would include cores of the machine that a container or a job cannot use.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
