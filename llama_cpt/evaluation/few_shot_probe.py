"""A probe that measures a model's few-shot accuracy on benchmarks while it is trained.

The ability to learn from examples in the prompt can collapse while the loss still improves (arXiv
2506.00288).
"""

from collections.abc import Sequence

import numpy as np

from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.evaluation.benchmarks import load_benchmark, runs_code
from llama_cpt.evaluation.harness import HarnessModel
from llama_cpt.evaluation.questions import answered, make_questions, score_question
from llama_cpt.generation.decoder import decoder_attention, make_decoder
from llama_cpt.model.llama import Llama, with_attention, with_precision
from llama_cpt.parallel.mesh import Mesh
from llama_cpt.runtime.errors import UserError


class FewShotProbe:
    """A function of a model that returns its mean score on each benchmark in ``names``.

    ``data`` is the folder of the benchmarks, or empty for the Hugging Face Hub. ``shots`` is the
    number of worked examples before each question, and None keeps the default of the task. At most
    ``limit`` questions per benchmark are asked, which are the same for every model. Raises
    UserError if a benchmark cannot be used, or if ``config`` does not support a probe.
    """

    def __init__(
        self,
        config: TrainConfig,
        names: Sequence[str],
        *,
        data: str,
        shots: int | None,
        limit: int,
        tokenizer: Tokenizer,
        mesh: Mesh,
    ) -> None:
        self.tokenizer, self.mesh = tokenizer, mesh
        _check(config, mesh, names)
        self._questions = {}
        for name in names:
            benchmark = load_benchmark(name, data, shots)
            questions = make_questions(benchmark, chat=None, limit=limit)
            self._questions[benchmark.name] = questions

    def __call__(self, model: Llama) -> dict[str, float]:
        """Return the metric ``probe/NAME`` of each benchmark, computed with ``model``.

        The computation needs memory for a copy of the model in its compute type. Every process
        must call this method.
        """
        attention = decoder_attention(model.config.head_dim)
        model = with_attention(with_precision(model, "bf16"), attention)
        harnessed = HarnessModel(make_decoder(model, self.mesh), self.tokenizer, self.mesh, None)
        found = {}
        for name, questions in self._questions.items():
            for question in questions:
                for instance in question.instances:
                    # These are the answers of the model of the previous call.
                    instance.resps, instance.filtered_resps = [], {}
            scores = [score_question(one).score for one in answered(questions, harnessed)]
            found[f"probe/{name}"] = float(np.mean(scores))
        return found


def _check(config: TrainConfig, mesh: Mesh, names: Sequence[str]) -> None:
    """Raise UserError if ``config`` or a benchmark in ``names`` does not support a probe."""
    if not config.data.heldout:
        raise UserError(
            "--probe runs at each held-out evaluation, but data.heldout is empty; add a corpus."
        )
    if config.lora:
        raise UserError("--probe does not support lora; evaluate the checkpoints instead.")
    if mesh.shape["context"] > 1:
        raise UserError(
            f"--probe does not support mesh.context={mesh.shape['context']}; set it to 1, or "
            "evaluate the checkpoints instead."
        )
    for name in names:
        if runs_code(name):
            raise UserError(
                f"--probe {name}: a probe does not run code that the model generates; choose a "
                "different benchmark."
            )
