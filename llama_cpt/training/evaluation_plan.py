"""The plan of a run's held-out evaluations: the steps, the sample of documents and the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.progress import duration
from llama_cpt.training.cadence import evaluation_steps
from llama_cpt.training.heldout import Documents, evenly_spaced, pack_windows, sample_windows

MAX_SHARE = 0.05
"""Maximum tokens of all evaluations divided by the tokens of the run, if documents is 0."""
MAX_DOCUMENTS = 256
"""Maximum number of documents per held-out corpus, if documents is 0."""
FEWEST_EVALUATIONS = 4
"""Number of evaluations for which the sample leaves room, if documents is 0."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The held-out evaluations of a run."""

    steps: frozenset[int]
    """The numbers of steps done after which held-out text is evaluated."""
    left_out: int
    """Number of evaluations that the config schedules but that would cost too much."""
    documents: int
    """Maximum number of evaluated documents per held-out corpus."""
    batch_size: int
    """Number of rows of ``data.sequence_length`` tokens per batch, over all devices."""
    tokens: int
    """Number of tokens per evaluation, including padding."""
    run_tokens: int
    """Number of training tokens of the run, including padding."""
    chosen: bool = False
    """True if ``evaluation.documents`` is 0, so that the number of documents was computed."""

    @property
    def share(self) -> float:
        """Tokens of all evaluations divided by the training tokens of the run."""
        return len(self.steps) * self.tokens / self.run_tokens

    def describe(self, seconds: float | None = None) -> str:
        """Return the number of evaluations and their cost as a sentence.

        ``seconds`` is the duration of one evaluation; None if it is not known.
        """
        count = len(self.steps)
        if not count:
            return "held-out evaluation: none, because data.heldout is empty"
        sample = "1 document" if self.documents == 1 else f"up to {self.documents:,} documents"
        time = f", about {duration(count * seconds)}" if seconds else ""
        less = f"; {self.left_out:,} more would exceed {MAX_SHARE:.0%}" if self.left_out else ""
        return (
            f"held-out evaluation: {count:,} times {sample} per corpus, "
            f"{count * self.tokens:,} tokens, {self.share:.1%} of the run's {self.run_tokens:,} "
            f"tokens{time}{less}"
        )

    @property
    def warning(self) -> str:
        """A sentence if the evaluations take more than ``MAX_SHARE``, otherwise empty."""
        if self.share <= MAX_SHARE:
            return ""
        remedy = "set a lower evaluation.documents or a higher evaluation.every_steps"
        if self.chosen:
            remedy = "train longer, or use shorter held-out documents"
        return (
            f"held-out evaluation takes {self.share:.0%} of the run's tokens, more than "
            f"{MAX_SHARE:.0%}; {remedy}."
        )


def run_tokens(config: TrainConfig) -> int:
    """Return the number of training tokens of the run, including padding."""
    return config.num_steps * config.global_batch_size * config.data.sequence_length


def plan_evaluations(
    config: TrainConfig,
    corpora: Mapping[str, Documents],
    *,
    limit_tokens: int | None = None,
    documents: int = 0,
    row_multiple: int = 1,
) -> EvaluationPlan:
    """Return the evaluations of a run on the held-out ``corpora``.

    If ``evaluation.documents`` is 0, the sample has at most MAX_DOCUMENTS documents per corpus and
    leaves room for FEWEST_EVALUATIONS within MAX_SHARE of ``limit_tokens``, by default the tokens
    of the run. Runs that are compared with each other need the same ``limit_tokens``, so that they
    have the same sample. Then, evaluations other than the first and the last are left out if all
    evaluations would take more than MAX_SHARE of the run's tokens. If ``documents`` is above 0, it
    replaces the number of documents, for a resumed run. ``row_multiple`` is the number of devices
    over which rows are sharded. Raises UserError if a sample contains no text.
    """
    own = run_tokens(config)
    steps = evaluation_steps(config.evaluation, config.num_steps)
    if not corpora:
        return EvaluationPlan(frozenset(), 0, 0, config.evaluation.batch_size, 0, own)
    length, batch = config.data.sequence_length, config.evaluation.batch_size
    if count := config.evaluation.documents:
        tokens = _tokens(_count_rows(corpora, count, length), batch, length)
        return EvaluationPlan(frozenset(steps), 0, count, batch, tokens, own)
    share = MAX_SHARE * (limit_tokens or own) / min(len(steps), FEWEST_EVALUATIONS)
    # Rows are padded to a multiple of the number of devices.
    most = max(int(share) // length // row_multiple * row_multiple, 1)
    count, rows = _largest_sample(corpora, length, most, documents)
    # Batches of equal size need the least padding.
    batches = -(-rows // batch)
    batch = min(batch, -(-rows // (batches * row_multiple)) * row_multiple)
    tokens = _tokens(rows, batch, length)
    kept = _thinned(steps, max(int(MAX_SHARE * own) // tokens, 2))
    left_out = len(steps) - len(kept)
    return EvaluationPlan(frozenset(kept), left_out, count, batch, tokens, own, chosen=True)


def seconds_per_evaluation(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the duration of the shortest evaluation in ``lines`` of ``metrics.jsonl``, or None.

    The first evaluation of an attempt takes longer, because it includes the compilation. The
    evaluation before the first step is ignored, because its results can be those of another run.
    """
    found = [line.get("perf/evaluation_seconds") for line in lines if line["step"] > 0]
    return min((seconds for seconds in found if seconds), default=None)


def _largest_sample(
    corpora: Mapping[str, Documents], length: int, most_rows: int, fixed: int
) -> tuple[int, int]:
    """Return the number of documents per corpus of a sample, and its number of rows.

    The sample has about the largest number of documents that fit in ``most_rows`` rows of
    ``length`` tokens, at least one document per corpus, or ``fixed`` documents if that is not 0.
    """
    available = max(map(len, corpora.values()))
    count = fixed or min(MAX_DOCUMENTS, available)
    rows = _count_rows(corpora, count, length)
    while rows > most_rows and count > 1 and not fixed:
        # Shrink in proportion to the excess, and by at least one document.
        count = max(min(count - 1, count * most_rows // rows), 1)
        rows = _count_rows(corpora, count, length)
    return count, rows


def _count_rows(corpora: Mapping[str, Documents], count: int, length: int) -> int:
    return len(pack_windows(sample_windows(corpora, length, count).windows, length))


def _tokens(rows: int, batch_size: int, length: int) -> int:
    """Return the tokens of all batches that are needed for ``rows`` rows."""
    return -(-rows // batch_size) * batch_size * length


def _thinned(steps: Sequence[int], count: int) -> list[int]:
    """Return the first, the last and evenly spaced other steps, in total at most ``count``."""
    if len(steps) <= count:
        return list(steps)
    # Reversed, because late evaluations show more of the change than the earliest.
    between = steps[1:-1][::-1]
    chosen = (between[index] for index in evenly_spaced(len(between), count - 2))
    return sorted({steps[0], steps[-1], *chosen})
