"""Every corpus of a config as token rows: what is missing is prepared, what is stale is refused."""

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

# Prepares many corpora at once, by a tokenizer.
WriteAll = Callable[[list[PrepareJob], Tokenizer], None]

# Below this, starting processes costs more than they save.
POOL_BYTES = 4 << 20


@dataclass(frozen=True)
class PreparedCorpora:
    """All corpora of a config, ready to read."""

    config: DataConfig
    rows: dict[str, Manifest]
    heldout: dict[str, Manifest]

    def lossy(self) -> list[str]:
        """A sentence on every corpus whose text the tokenizer changes."""
        groups = (self.rows.values(), self.heldout.values())
        return [told for group in groups for manifest in group if (told := manifest.lossy())]

    def folder(self, name: str) -> str:
        """Where a training corpus lies."""
        return str(_folder(self.config, name, heldout=False))

    def heldout_folder(self, name: str) -> str:
        """Where a held-out corpus lies."""
        return str(_folder(self.config, name, heldout=True))

    def fingerprints(self) -> dict[str, Any]:
        """Of tokenizer and corpora: equal for equal data, wherever it lies."""
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
    """Prepare what is missing and return all; the same shards come out for any ``workers``.

    ``write_missing`` prepares the corpora that are missing, all together, instead of this machine.

    A killed call goes on at the shard where it was; a second call at the same time waits. Raises
    UserError for bad sources, and for a prepared corpus whose sources, tokenizer, row length or
    text field are no longer what they were: runs may depend on it, so it is never replaced. What
    ``objective`` learns from, by default next tokens, decides how chat data is packed.
    """
    _check_names(config)
    check_reachable(config.prepared)
    tokenizer = load_tokenizer(config.tokenizer)
    chat = None
    if config.chat:
        template = load_chat_template(tokenizer, config.chat.template)
        chat = make_chat_spec(config.chat, template, objective or NextTokenConfig())
    if write_missing:
        _write_at_once(config, tokenizer, chat, write_missing)
    with contextlib.ExitStack() as stack:
        encoders = _Encoders(stack, tokenizer, workers)

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
    """The training corpora in the mixture's order, ready to read.

    ``references``: by corpus, the answers' log-probabilities under the reference model (see
    ``PackedRows``); zeros for a corpus without.
    """
    folders = {name: prepared.folder(name) for name in prepared.rows}
    if prepared.config.chat is None:
        return tuple(TokenRows(folder) for folder in folders.values())
    known = [(references or {}).get(name) for name in folders]
    return open_packed_rows(list(folders.values()), known)


class _Encoders:
    """The way to encode that suits a corpus; processes start with the first that needs them."""

    def __init__(
        self, stack: contextlib.ExitStack, tokenizer: Tokenizer, workers: int | None
    ) -> None:
        self.tokenizer = tokenizer
        self._stack, self._workers = stack, workers
        self._pool: TokenizePool | None = None

    def suited_to(self, source_bytes: float) -> Encode:
        """Processes for much text, this one for little; they make the same tokens."""
        workers = self._workers or (_cores() if source_bytes > POOL_BYTES else 1)
        if workers == 1:
            return partial(map, partial(encode_span, self.tokenizer))
        if self._pool is None:
            self._pool = self._stack.enter_context(TokenizePool(self.tokenizer.path, workers))
        return self._pool.encode


def _corpus(
    config: DataConfig,
    corpus: CorpusConfig,
    encoders: _Encoders,
    *,
    chat: ChatSpec | None = None,
    heldout: bool = False,
) -> Manifest:
    folder = _folder(config, corpus.name, heldout=heldout)
    recipe = _recipe(config, corpus, encoders.tokenizer, chat, heldout=heldout)
    found = read_manifest(str(folder))
    if found is None:
        with _locked(folder):
            found = read_manifest(str(folder))
            if found is None:
                order = _order(folder, corpus, recipe)
                return write_corpus(order, encoders.suited_to(order.megabytes * 1e6))
    _check_current(folder, corpus, recipe, found)
    return found


def _write_at_once(
    config: DataConfig, tokenizer: Tokenizer, chat: ChatSpec | None, write: WriteAll
) -> None:
    """What is missing, by ``write``."""
    wanted = {}
    for corpus in config.additional + config.original:
        recipe = _recipe(config, corpus, tokenizer, chat, heldout=False)
        wanted[_folder(config, corpus.name, heldout=False)] = corpus, recipe
    for corpus in config.heldout:
        recipe = _recipe(config, corpus, tokenizer, None, heldout=True)
        wanted[_folder(config, corpus.name, heldout=True)] = corpus, recipe
    orders = []
    with contextlib.ExitStack() as stack:
        for folder in sorted(wanted):  # In one order, so that no two processes wait in a circle.
            if read_manifest(str(folder)) is None:
                stack.enter_context(_locked(folder))
                if read_manifest(str(folder)) is None:
                    orders.append(_order(folder, *wanted[folder]))
        if orders:
            write(orders, tokenizer)


def _recipe(
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
    """The right to write ``folder``, waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    told = f"{folder}: waiting for another process that prepares it"
    return file_lock(folder.parent / f".{folder.name}.lock", told, wait=True)


def _order(folder: epath.Path, corpus: CorpusConfig, recipe: PrepareSpec) -> PrepareJob:
    sources = find_sources(corpus)
    digests = with_digests(corpus.name, sources.stats())
    source_bytes = sum(source["bytes"] for source in digests)
    layout = make_layout(source_bytes, recipe.sequence_length)
    if recipe.chat and recipe.chat.kind == "unpaired":
        # One shard: an answer's mismatch is the corpus's next answer, the last's the first.
        layout = ShardLayout(layout.span_bytes, 1 << 62)
    return PrepareJob(folder, sources, recipe, digests, layout)


def _check_current(
    folder: epath.Path, corpus: CorpusConfig, recipe: PrepareSpec, found: Manifest
) -> None:
    """Refuse a prepared corpus that is not what the config asks for now."""
    made, asked = (_flat({f: getattr(one, f) for f in asdict(recipe)}) for one in (found, recipe))
    changed = [
        f"{field} was {made.get(field)!r}, is {asked.get(field)!r}"
        for field in asked | made
        if made.get(field) != asked.get(field)
        # Where nothing was skipped, both settings give the same rows.
        and (field != "bad_documents" or found.skipped)
    ]
    if not changed:
        try:
            sources = find_sources(corpus)
        except UserError as error:
            if not all(was_matched(source["path"], corpus.source) for source in found.sources):
                raise UserError(f"{error} The rows in {folder} were made of others.") from None
            print(
                f"note: {error} Its rows in {folder} are used as they were prepared.",
                file=sys.stderr,
            )
            return
        now = sources.stats()
        changed = [change] if (change := describe_changes(now, found.sources)) else []
    if changed:
        raise UserError(
            f"{folder} was prepared from something else: {'; '.join(changed)}. Set another "
            f"data.prepared, or delete {folder} to prepare it anew (runs that read it cannot "
            "resume then)."
        )
    same = [new | {"digest": old["digest"]} for new, old in zip(now, found.sources, strict=True)]
    if same != found.sources:
        # Moved or touched: the next start need not read it all again to see that it is the same.
        with _locked(folder):
            write_manifest(str(folder), replace(found, sources=same))


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe, and those of its ``chat`` as ``chat.NAME``."""
    chat = values.pop("chat") or {}
    fields = chat if isinstance(chat, dict) else asdict(chat)
    return values | {f"chat.{name}": value for name, value in fields.items()}


def _warn_of_overlap(prepared: PreparedCorpora) -> None:
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
                    f"{trained_on[source['digest']]!r} share {source['path']}: its loss says "
                    "nothing of new text.",
                    file=sys.stderr,
                )


def _check_names(config: DataConfig) -> None:
    for corpus in config.additional + config.original + config.heldout:
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", corpus.name) or corpus.name == HELDOUT:
            raise UserError(
                f"data: a corpus cannot be named {corpus.name!r}, which names its folder: use "
                f"letters, digits and any of ._+- and not {HELDOUT!r}."
            )


def _folder(config: DataConfig, name: str, *, heldout: bool) -> epath.Path:
    place = epath.Path(config.prepared)
    return place / HELDOUT / name if heldout else place / name


def _cores() -> int:
    # Not cpu_count: a container or a job may own fewer than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
