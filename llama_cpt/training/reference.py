"""Reference log-probabilities of answers under the initial model, computed once and cached.

The cache holds one ``.npy`` file per corpus, float32 (rows, segments), in a folder named by the
fingerprint of everything that the numbers depend on. A file next to it holds its digest, by which
damage is detected.
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
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.preference import segment_logprobs
from llama_cpt.parallel.global_arrays import from_replicated
from llama_cpt.parallel.mesh import constrain, partition_spec
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.progress import Progress
from llama_cpt.weights.source import open_source

Score = Callable[[PreferenceBatch | UnpairedBatch], np.ndarray]
"""A function from a batch to its log-probabilities (batch, segments), equal on every process."""


@runtime_checkable
class AnswerRows(Protocol):
    """The rows of answers of a corpus; ``reference_logprobs`` of a batch is read for its shape."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> PreferenceBatch | UnpairedBatch:
        """Return rows ``indices`` as NumPy arrays."""
        ...


@dataclass(frozen=True)
class ReferenceIdentity:
    """The inputs of reference log-probabilities other than the corpus."""

    model: str
    """The ``model_identity`` of the weights."""
    tokenizer: str
    """The fingerprint of the tokenizer."""
    dtype: str
    """The compute type, with the precision of matrix products if it is lower."""

    def fingerprint(self, corpus: str) -> str:
        """Return the SHA-256 of all inputs; ``corpus`` is the corpus's own fingerprint."""
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
    """Return the reference log-probabilities of every corpus, from the cache if they are there.

    ``corpora``: name -> (rows, fingerprint). ``make_score`` loads the model and is called only if
    something is missing. Every process of a run must call this. Raises UserError if a
    log-probability is not finite.
    """
    found: dict[str, np.ndarray] = {}
    score = None
    for name, (rows, fingerprint) in corpora.items():
        file = epath.Path(folder) / identity.fingerprint(fingerprint)[:32] / f"{name}.npy"
        cached = _broadcast_cached(file, (len(rows), _num_segments(rows)))
        if cached is None:
            score = score or make_score()
            cached = _compute(name, rows, score, batch_size)
            if is_primary():
                _write_cache(file, cached)
        found[name] = cached
    return found


def scorer_program(loss_chunk_tokens: int) -> Callable:
    """Return ``program(model, batch) -> log-probabilities`` (batch, segments), jitted."""

    @jax.jit
    def program(model: Llama, batch: PreferenceBatch | UnpairedBatch) -> jax.Array:
        segments = batch.reference_logprobs.shape[-1]
        chunk = loss_chunk_tokens
        logprobs = segment_logprobs(model, batch.rows, segments, loss_chunk_tokens=chunk)
        # Replicated: every process stores the whole array.
        return constrain(logprobs, None, None)

    return program


def make_scorer(model: Llama, mesh: jax.sharding.Mesh, *, loss_chunk_tokens: int) -> Score:
    """Return ``score(batch)`` by ``model`` on ``mesh``; it compiles once per batch shape."""
    rows, program = row_sharding(mesh), scorer_program(loss_chunk_tokens)

    def score(batch: PreferenceBatch | UnpairedBatch) -> np.ndarray:
        with jax.set_mesh(mesh):
            return np.asarray(program(model, from_replicated(batch, rows)))

    return score


def row_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the sharding of every field of a batch (rows, ...) that is only scored."""
    return jax.NamedSharding(mesh, partition_spec("batch", None))


def model_identity(source: str, config: ModelConfig, seed: int) -> str:
    """Return the SHA-256 that identifies a model's weights, over the digests of their files.

    ``source`` is a run folder, whose checkpoint has its digests already, a Hugging Face folder or
    hub name, whose files are read, or empty for random weights, which ``seed`` names. Every process
    of a run calls this: a checkpoint is verified by all, as when it is loaded.
    """
    architecture = json.dumps(to_dict(config), sort_keys=True)
    weights = open_source(source).fingerprint() if source else f"seed {seed}"
    return hashlib.sha256(f"{architecture}\n{weights}".encode()).hexdigest()


def _num_segments(rows: AnswerRows) -> int:
    return rows.batch(np.zeros(1, np.int64)).reference_logprobs.shape[-1]


def _compute(name: str, rows: AnswerRows, score: Score, batch_size: int) -> np.ndarray:
    parts = []
    with Progress(f"reference {name}", float(len(rows)), "rows") as progress:
        for start in range(0, len(rows), batch_size):
            # The last batch is padded with the last row, so that all batches have one shape.
            indices = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
            here = min(batch_size, len(rows) - start)
            parts.append(score(rows.batch(indices))[:here])
            progress.update(float(here))
    logprobs = np.concatenate(parts).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(logprobs).all(axis=1))
    if bad.size:
        raise UserError(
            f"corpus {name!r}: the reference log-probability of row {bad[0]} is not finite: check "
            "the weights of init_from, or set compute.dtype=float32."
        )
    return logprobs


def _broadcast_cached(file: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return what the first process finds in the cache, on all processes.

    Other processes may see other disks. If each decided by its own cache, some would score and
    wait in collectives that the others never enter.
    """
    cached = _read_cache(file, shape) if is_primary() else None
    broadcast = multihost_utils.broadcast_one_to_all
    if not broadcast(np.int32(cached is not None)):
        return None
    return np.asarray(broadcast(np.zeros(shape, np.float32) if cached is None else cached))


def _read_cache(file: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the array in ``file`` if it is intact; otherwise None, with a warning if damaged."""
    if not _digest_file(file).exists():
        return None
    try:
        content = file.read_bytes()
        if json.loads(_digest_file(file).read_text()) != _digest(content):
            damage = "its digest does not match"
        elif (array := np.load(io.BytesIO(content))).shape == shape:
            return array
        else:
            damage = f"its shape is {array.shape}, but the corpus has {shape}"
    except (OSError, ValueError) as error:
        damage = str(error)
    print(f"warning: {file}: {damage}; recomputing it.", file=sys.stderr)
    return None


def _write_cache(file: epath.Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, array)
    # The digest is written last: without it the array counts as missing.
    write_atomic(file, content.getvalue())
    write_atomic(_digest_file(file), json.dumps(_digest(content.getvalue())).encode())


def _digest_file(file: epath.Path) -> epath.Path:
    return file.with_name(file.name + ".json")


def _digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
