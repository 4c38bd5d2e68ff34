"""The texts of benchmarks and held-out corpora, which must not be in the training data."""

from collections.abc import Iterator, Sequence
import re
from typing import Any

from llama_cpt.config.schema import DataConfig
from llama_cpt.corpus_report.documents import read_documents
from llama_cpt.corpus_report.overlap import EvaluationText
from llama_cpt.data.sources.documents import BadDocument
from llama_cpt.data.sources.files import find_sources
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.extras import require_packages

_CHOICE = re.compile(r"[A-D]|choice\d")


def heldout_texts(config: DataConfig) -> Iterator[EvaluationText]:
    """Yield the documents of all held-out corpora of ``config``."""
    for corpus in config.heldout:
        name = f"held-out {corpus.name}"
        for _, document in read_documents(find_sources(corpus), corpus.text_field):
            if not isinstance(document, BadDocument):
                place = f"{document.path}:{document.number}"
                yield EvaluationText(name, place, (document.text,))


def benchmark_texts(folder: str) -> list[EvaluationText]:
    """Return the questions of all benchmarks that ``evaluate --data FOLDER`` can read.

    Raises UserError if lm-evaluation-harness is not installed, if a file is damaged, or if the
    folder contains no benchmark.
    """
    require_packages("--eval-data", "lm_eval", extra="eval")
    # Imported here, because the import takes several seconds.
    from llama_cpt.evaluation.benchmarks import LOCAL, load_benchmark
    from llama_cpt.evaluation.tasks.local_files import MissingFileError

    texts = []
    for name in LOCAL:
        try:
            benchmark = load_benchmark(name, folder, None)
        except MissingFileError:
            continue
        for part, task in benchmark.parts.items():
            place = f"{name}/{part}" if part else name
            for number, row in enumerate(task.eval_docs, 1):
                texts.append(_question(name, f"{place}, question {number}", row))
    if not texts:
        raise UserError(
            f"{folder} contains no benchmark (known: {', '.join(LOCAL)}); set --eval-data to a "
            "folder with the layout of docs/guide/evaluation.md."
        )
    return texts


def _question(source: str, place: str, row: Any) -> EvaluationText:
    """Return the texts of a question; ``row`` is a dict of the columns.

    The first column of all loaders is the question. The choices follow the question with and
    without letters, as in most copies of multiple-choice questions.
    """
    first, *others = row.values()
    texts = [first] if isinstance(first, str) else list(first)
    choices = [str(value) for name, value in row.items() if _CHOICE.fullmatch(name)]
    if choices:
        lettered = [f"{letter} {text}" for letter, text in zip("ABCD", choices, strict=False)]
        texts += [_joined(texts[0], choices), _joined(texts[0], lettered)]
    fields = [value for value in others if isinstance(value, str)]
    return EvaluationText(source, place, tuple(texts), tuple(fields))


def _joined(question: str, choices: Sequence[str]) -> str:
    return "\n".join([question, *choices])
