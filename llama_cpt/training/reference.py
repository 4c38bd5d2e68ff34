"""Reference log-probabilities of answers under the initial model, computed once and cached.

The cache contains one ``.npy`` file per corpus, float32 (rows, segments). The name of the file's
folder is a fingerprint of everything on which the values depend. A JSON file next to each array
file contains the array file's size and SHA-256, so that damage is detected.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import hashlib
import io
import json
import logging
import math
from typing import Any, Protocol, runtime_checkable

from etils import epath
import jax
from jax.experimental import multihost_utils
from jaxtyping import Float32
import numpy as np

from llama_cpt.config.fields import to_dict
from llama_cpt.config.model import ModelConfig
from llama_cpt.data.batch import Batch, PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.preference import segment_logprobs
from llama_cpt.parallel.global_arrays import from_replicated
from llama_cpt.parallel.mesh import constrain, partition_spec
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError, first_line
from llama_cpt.runtime.json_files import read_bounded, read_json_object
from llama_cpt.runtime.progress import Progress
from llama_cpt.weights.source import open_source

logger = logging.getLogger(__name__)

REMEDY = "recomputing it"
HEADER_BYTES = 1 << 16
"""Upper bound of the size of the header of an array file."""

AnswerBatch = PreferenceBatch | UnpairedBatch

Score = Callable[[AnswerBatch], np.ndarray]
"""A function that returns the log-probabilities of a batch of answers in nats, (batch, segments).

Every process gets the whole array.
"""


@runtime_checkable
class AnswerRows(Protocol):
    """The rows of a corpus of preference pairs or rated answers, accessed by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """Return rows ``indices`` as a PreferenceBatch or an UnpairedBatch of NumPy arrays.

        Callers use only the shape of ``reference_logprobs`` in the batch, not its values.
        """
        ...


@dataclass(frozen=True)
class ReferenceIdentity:
    """The inputs, except the corpus, on which reference log-probabilities depend."""

    model: str
    """Identity of the weights, as ``model_identity`` returns it."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    dtype: str
    """Types of activations and of matrix products, as ``describe_precision`` returns them."""

    def fingerprint(self, corpus: str) -> str:
        """Return the SHA-256, in hexadecimal, of all fields and ``corpus``.

        ``corpus`` is the fingerprint of a corpus.
        """
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
    """Return a dict from corpus name to reference log-probabilities in nats.

    Values are read from the cache in ``folder`` if they exist there. Otherwise they are computed
    and written to the cache. ``corpora`` maps a corpus name to rows and their fingerprint.
    ``make_score`` loads the model. It is called at most once, and only if a corpus is not in the
    cache. Every process of a run must call this function. Raises UserError if a log-probability is
    not finite.
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


def scorer_program(loss_chunk_tokens: int) -> jax.stages.Wrapped:
    """Return a jitted ``program(model, batch)`` that scores answers.

    The program returns the summed log-probability in nats of each segment's answer, float32
    (batch, segments). It processes ``loss_chunk_tokens`` tokens per device at a time.
    """

    @jax.jit
    def program(model: Llama, batch: AnswerBatch) -> jax.Array:
        segments = batch.reference_logprobs.shape[-1]
        chunk = loss_chunk_tokens
        logprobs = segment_logprobs(model, batch.rows, segments, loss_chunk_tokens=chunk)
        # The result is replicated, because every process returns the whole array.
        return constrain(logprobs, None, None)

    return program


def make_scorer(model: Llama, mesh: jax.sharding.Mesh, *, loss_chunk_tokens: int) -> Score:
    """Return a function that computes the log-probabilities of a batch with ``model``.

    The function compiles once per batch shape.
    """
    rows, program = row_sharding(mesh), scorer_program(loss_chunk_tokens)

    def score(batch: AnswerBatch) -> np.ndarray:
        with jax.set_mesh(mesh):
            return np.asarray(program(model, from_replicated(batch, rows)))

    return score


def row_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the sharding of a batch whose fields have shape (rows, ...), without micro-batches."""
    return jax.NamedSharding(mesh, partition_spec("batch", None))


def model_identity(source: str, config: ModelConfig, seed: int) -> str:
    """Return a SHA-256 that identifies the weights and the architecture of a model.

    ``source`` is a run folder, a Hugging Face folder, a name on the Hugging Face Hub, or empty. For
    a run folder, the identity covers the digests in the checkpoint's manifest. For Hugging Face
    weights, the files are read and digested. For an empty ``source``, the weights are random and
    ``seed`` identifies them. Every process of a run must call this function, because all processes
    verify a checkpoint together.
    """
    architecture = json.dumps(to_dict(config), sort_keys=True)
    weights = open_source(source).fingerprint() if source else f"seed {seed}"
    return hashlib.sha256(f"{architecture}\n{weights}".encode()).hexdigest()


def _answers(rows: AnswerRows, indices: np.ndarray) -> AnswerBatch:
    batch = rows.batch(indices)
    assert not isinstance(batch, TokenBatch), "the corpus has no answers"
    return batch


def _num_segments(rows: AnswerRows) -> int:
    return _answers(rows, np.zeros(1, np.int64)).reference_logprobs.shape[-1]


def _compute(name: str, rows: AnswerRows, score: Score, batch_size: int) -> np.ndarray:
    parts = []
    with Progress(f"reference {name}", float(len(rows)), "rows") as progress:
        for start in range(0, len(rows), batch_size):
            # The last batch is padded with the last row, so that all batches have one shape.
            indices = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
            count = min(batch_size, len(rows) - start)
            parts.append(score(_answers(rows, indices))[:count])
            progress.update(float(count))
    logprobs = np.concatenate(parts).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(logprobs).all(axis=1))
    if bad.size:
        raise UserError(
            f"corpus {name!r}: the reference log-probability of row {bad[0]} is not finite; check "
            "the weights of init_from, or set compute.dtype=float32."
        )
    return logprobs


def _broadcast_cached(file: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return, on every process, the array that the primary process reads from ``file``.

    Returns None on every process if the primary process cannot read the array. All processes must
    agree on whether the cache is used, even if each process has its own disk. Otherwise some
    processes would compute the values and wait in collectives that the remaining processes never
    enter.
    """
    cached = _read_cache(file, shape) if is_primary() else None
    broadcast = multihost_utils.broadcast_one_to_all
    if not broadcast(np.int32(cached is not None)):
        return None
    return np.asarray(broadcast(np.zeros(shape, np.float32) if cached is None else cached))


def _read_cache(file: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the array in ``file``, or None if the file does not exist or is damaged.

    Damage is logged as a warning.
    """
    if not _digest_file(file).exists():
        return None
    try:
        digest = read_json_object(str(_digest_file(file)), REMEDY)
        content = read_bounded(str(file), REMEDY, max_bytes=4 * math.prod(shape) + HEADER_BYTES)
        if digest != _digest(content):
            damage = f"{file}: its digest does not match; {REMEDY}."
        elif (array := np.load(io.BytesIO(content))).shape == shape:
            return array
        else:
            damage = f"{file}: its shape is {array.shape}, but the corpus has {shape}; {REMEDY}."
    except UserError as error:
        damage = str(error)
    except (OSError, ValueError) as error:
        damage = f"{file}: {first_line(error)}; {REMEDY}."
    logger.warning("%s", damage)
    return None


def _write_cache(file: epath.Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, array)
    # The digest is written last, because the array counts as missing until the digest exists.
    write_atomic(file, content.getvalue())
    write_atomic(_digest_file(file), json.dumps(_digest(content.getvalue())).encode())


def _digest_file(file: epath.Path) -> epath.Path:
    return file.with_name(file.name + ".json")


def _digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
