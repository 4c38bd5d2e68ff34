"""The held-out evaluation of the state of a run, which a signal can end."""

from collections.abc import Callable

import numpy as np

from llama_cpt.data.batch import TokenBatch
from llama_cpt.parallel.global_arrays import from_replicated
from llama_cpt.runtime.compile_time import exclude_compilation
from llama_cpt.training.heldout import HeldoutResult, evaluate_heldout
from llama_cpt.training.reference import row_sharding
from llama_cpt.training.run import Run
from llama_cpt.training.stop import SAVE_FAILED, Outcome
from llama_cpt.training.train_step import TrainState

Evaluation = dict[str, HeldoutResult]
"""Held-out results by corpus name."""


class EvaluationStoppedError(Exception):
    """Raised if a signal ends a held-out evaluation."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        """The outcome of the run for the signal."""


def evaluate(run: Run, state: TrainState, poll: Callable[[], int] = lambda: 0) -> Evaluation:
    """Return the loss and the bits per byte of every held-out corpus for ``state``.

    ``poll`` is called before each batch. Raises EvaluationStoppedError if it returns a vote to
    stop.
    """
    exclude_compilation()
    rows = row_sharding(run.program.mesh)

    def score(batch: TokenBatch) -> np.ndarray:
        if (vote := poll()) > SAVE_FAILED:
            raise EvaluationStoppedError(Outcome(vote))
        return np.asarray(run.program.score(state.model, from_replicated(batch, rows)))

    return evaluate_heldout(
        score,
        run.heldout,
        sequence_length=run.config.data.sequence_length,
        batch_size=run.evaluations.batch_size,
        documents=run.evaluations.documents,
    )
