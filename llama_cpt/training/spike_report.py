"""The description of spikes by the rows of their batches with the largest loss."""

from dataclasses import asdict, dataclass
import json
import logging
import math

from etils import epath
import jax
import numpy as np

from llama_cpt.data.batch import TokenBatch
from llama_cpt.data.loader import read_batch
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.global_arrays import from_replicated
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.untrusted_text import one_line
from llama_cpt.training.reference import row_sharding
from llama_cpt.training.run import Run
from llama_cpt.training.spikes import SpikeMonitor

logger = logging.getLogger(__name__)

FILE = "spikes.json"
"""Name of the file in the output folder that describes the newest spikes."""
MAX_ROWS = 3
"""Number of rows that are described."""
MAX_CHARACTERS = 200
"""Maximum number of characters of a row that are shown."""
_WINDOW_TOKENS = 64


@dataclass(frozen=True)
class LargestRow:
    """A row of a batch with a large loss."""

    corpus: str
    file: str
    """Path of the shard with the row."""
    row: int
    """Index of the row in the shard."""
    loss: float | None
    """Mean loss in nats per target that counts; None if it is not finite."""
    text: str
    """Text of the tokens with the largest loss in the row, on one line."""

    def __str__(self) -> str:
        """Return a line for the log."""
        loss = "not finite" if self.loss is None else f"{self.loss:.4f}"
        return f"{self.corpus}: {self.file}, row {self.row}: loss {loss}: {self.text!r}"


def describe_spikes(run: Run, model: Llama, monitor: SpikeMonitor) -> None:
    """Log and record the rows of the spikes that were not described before.

    ``model`` scores the rows. Every process must call this function.
    """
    effect = "; its update was skipped" if monitor.config.action == "skip" else ""
    while monitor.undescribed:
        spike = monitor.undescribed[0]
        rows = largest_rows(run, model, spike.first_row)
        monitor.record(spike, [asdict(row) for row in rows])
        if not is_primary():
            continue
        logger.warning("%s%s. Rows of the batch with the largest loss:", spike, effect)
        for row in rows:
            logger.warning("  %s", row)
        text = json.dumps(monitor.records, indent=1, ensure_ascii=False)
        write_atomic(epath.Path(run.config.output) / FILE, f"{text}\n".encode())


def largest_rows(run: Run, model: Llama, first_row: int) -> list[LargestRow]:
    """Return the rows with the largest loss under ``model`` in a batch of ``run``.

    ``first_row`` is the index in the run of the first row of the batch. Every process must call
    this function. Every process reads the whole batch.
    """
    numbers = first_row + np.arange(run.config.global_batch_size, dtype=np.int64)
    sharding, found = row_sharding(run.program.mesh), []
    for part in numbers.reshape(run.config.num_microbatches, -1):
        batch = read_batch(run.mixture, run.rows, part[None])
        rows = batch if isinstance(batch, TokenBatch) else batch.rows
        rows = jax.tree.map(lambda leaf: leaf[0], rows)
        nll = np.asarray(run.program.score(model, from_replicated(rows, sharding)), np.float64)
        nll = np.where(rows.loss_mask > 0, nll, 0.0)
        for number, tokens, row_nll, mask in zip(
            part, rows.tokens, nll, rows.loss_mask, strict=True
        ):
            loss = row_nll.sum() / max(mask.sum(), 1.0)
            found.append((loss if math.isfinite(loss) else math.inf, number, tokens, row_nll))
    found.sort(key=lambda row: row[0], reverse=True)
    return [_describe(run, *row) for row in found[:MAX_ROWS]]


def _describe(
    run: Run, loss: float, number: int, tokens: np.ndarray, nll: np.ndarray
) -> LargestRow:
    corpora, indices = run.mixture.locate(np.array([number], np.int64))
    corpus, index = int(corpora[0]), int(indices[0])
    file, row = run.rows[corpus].place(index)
    # The window with the largest summed loss.
    sums = np.cumsum(np.concatenate([[0.0], np.nan_to_num(nll)]))
    width = min(_WINDOW_TOKENS, len(nll))
    start = int(np.argmax(sums[width:] - sums[:-width]))
    text = one_line(run.tokenizer.decode(tokens[start : start + width].tolist()))
    name = run.mixture.corpora[corpus].name
    known = loss if math.isfinite(loss) else None
    return LargestRow(name, file, row, known, text[:MAX_CHARACTERS])
