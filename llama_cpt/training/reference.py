"""Log-probabilities of answers under the model that a stage starts from, computed once and kept.

One ``.npy`` a corpus, float32 (rows, segments), in a folder named by the fingerprint of all that
the numbers depend on; a file beside it holds its digest, so that a damaged one is found out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import hashlib
import io
import json
import sys
from typing import Any, Protocol, runtime_checkable

from etils import epath
import jax
from jax.experimental import multihost_utils
from jaxtyping import Float32
import numpy as np

from llama_cpt.config.fields import to_dict
from llama_cpt.config.schema import ModelConfig
from llama_cpt.data.batch import PreferenceBatch, UnpairedBatch
from llama_cpt.data.rows import write_atomic
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.preference import segment_logprobs
from llama_cpt.parallel.global_arrays import from_replicated
from llama_cpt.parallel.mesh import constrain, partition_spec
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress
from llama_cpt.weights.source import open_source

Score = Callable[[PreferenceBatch | UnpairedBatch], np.ndarray]
"""A batch's log-probabilities (batch, segments), the same on every process."""


@runtime_checkable
class AnswerRows(Protocol):
    """A corpus's rows of answers; of a batch, ``reference_logprobs`` is read for its shape only."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> PreferenceBatch | UnpairedBatch:
        """Rows ``indices`` as NumPy arrays."""
        ...


@dataclass(frozen=True)
class ReferenceIdentity:
    """What reference log-probabilities depend on but the corpus."""

    model: str
    """``model_identity`` of the weights."""
    tokenizer: str
    """Fingerprint of the vocabulary."""
    dtype: str
    """``compute.dtype``, with ``compute.matmul_precision`` where that is below it."""

    def fingerprint(self, corpus: str) -> str:
        """With the corpus's own fingerprint, which tells of its data and template."""
        parts = [self.model, self.tokenizer, self.dtype, corpus]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def reference_logprobs(
    corpora: Mapping[str, tuple[AnswerRows, str]],
    make_score: Callable[[], Score],
    *,
    folder: str,
    identity: ReferenceIdentity,
    batch_size: int,
) -> dict[str, Float32[np.ndarray, "rows segments"]]:
    """Every corpus's reference log-probabilities: read where they are kept, else computed and kept.

    ``corpora``: name -> (rows, fingerprint). ``make_score`` loads the model, and is called only
    where something is missing. Every process of a run calls this. Raises UserError where a
    log-probability is not finite.
    """
    found: dict[str, np.ndarray] = {}
    score = None
    for name, (rows, fingerprint) in corpora.items():
        place = epath.Path(folder) / identity.fingerprint(fingerprint)[:32] / f"{name}.npy"
        kept = _everywhere(place, (len(rows), _num_segments(rows)))
        if kept is None:
            score = score or make_score()
            kept = _computed(name, rows, score, batch_size)
            if is_primary():
                _keep(place, kept)
        found[name] = kept
    return found


def scorer_program(loss_chunk_tokens: int) -> Callable:
    """``program(model, batch) -> log-probabilities`` (batch, segments), jitted."""

    @jax.jit
    def program(model: Llama, batch: PreferenceBatch | UnpairedBatch) -> jax.Array:
        segments = batch.reference_logprobs.shape[-1]
        chunk = loss_chunk_tokens
        logprobs = segment_logprobs(model, batch.rows, segments, loss_chunk_tokens=chunk)
        # Replicated: every process keeps the whole of it.
        return constrain(logprobs, None, None)

    return program


def make_scorer(model: Llama, mesh: jax.sharding.Mesh, *, loss_chunk_tokens: int) -> Score:
    """``score(batch)`` by ``model``, sharded over ``mesh``; one compilation a shape."""
    rows, program = row_sharding(mesh), scorer_program(loss_chunk_tokens)

    def score(batch: PreferenceBatch | UnpairedBatch) -> np.ndarray:
        with jax.set_mesh(mesh):
            return np.asarray(program(model, from_replicated(batch, rows)))

    return score


def row_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Of every field of a batch that is scored."""
    return jax.NamedSharding(mesh, partition_spec("batch", None))


def model_identity(source: str, config: ModelConfig, seed: int) -> str:
    """What tells one model's weights from another's: SHA-256 over digests of their files.

    ``source`` is a run folder, whose checkpoint has its digests already, a Hugging Face folder or
    hub name, whose files are read, or empty for random weights, which ``seed`` names. Every process
    of a run calls this: a checkpoint is verified by all, as when it is loaded.
    """
    architecture = json.dumps(to_dict(config), sort_keys=True)
    weights = open_source(source).fingerprint() if source else f"seed {seed}"
    return hashlib.sha256(f"{architecture}\n{weights}".encode()).hexdigest()


def _num_segments(rows: AnswerRows) -> int:
    return rows.batch(np.zeros(1, np.int64)).reference_logprobs.shape[-1]


def _computed(name: str, rows: AnswerRows, score: Score, batch_size: int) -> np.ndarray:
    parts = []
    with Progress(f"reference {name}", float(len(rows)), "rows") as progress:
        for start in range(0, len(rows), batch_size):
            # The last batch is filled up with the last row: one shape, one compilation.
            indices = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
            here = min(batch_size, len(rows) - start)
            parts.append(score(rows.batch(indices))[:here])
            progress.update(float(here))
    logprobs = np.concatenate(parts).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(logprobs).all(axis=1))
    if bad.size:
        raise UserError(
            f"corpus {name!r}: the reference gives row {bad[0]} a log-probability that is not "
            "finite: its weights are broken, or compute.dtype=float32 is needed."
        )
    return logprobs


def _everywhere(place: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What the first process finds kept, on all of them: they may see other disks."""
    kept = _kept(place, shape) if is_primary() else None
    share = multihost_utils.broadcast_one_to_all
    if not share(np.int32(kept is not None)):
        return None
    return np.asarray(share(np.zeros(shape, np.float32) if kept is None else kept))


def _kept(place: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The array in ``place`` if it is whole; None, and why on stderr, if it is damaged."""
    if not _digest_file(place).exists():
        return None
    try:
        content = place.read_bytes()
        if json.loads(_digest_file(place).read_text()) != _digest(content):
            damage = "it was altered (its digest is another)"
        elif (array := np.load(io.BytesIO(content))).shape == shape:
            return array
        else:
            damage = f"it is {array.shape} and the corpus {shape}"
    except (OSError, ValueError) as error:
        damage = str(error)
    print(f"warning: {place}: {damage}; computed anew.", file=sys.stderr)
    return None


def _keep(place: epath.Path, array: np.ndarray) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, array)
    write_atomic(place, content.getvalue())
    write_atomic(_digest_file(place), json.dumps(_digest(content.getvalue())).encode())


def _digest_file(place: epath.Path) -> epath.Path:
    return place.with_name(place.name + ".json")


def _digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
