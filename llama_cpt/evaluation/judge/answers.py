"""Generation of a chat model's answers to prompts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jax.sharding import Mesh
import numpy as np

from llama_cpt.data.chat.template import ChatTemplate
from llama_cpt.data.tokenizer.tokenizer import Tokenizer
from llama_cpt.evaluation.judge.prompts import Answerer
from llama_cpt.evaluation.judge.verdicts import Prompt
from llama_cpt.evaluation.written_answers import AnswerSpec, written_answers
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.sampling import Sampling


@dataclass(frozen=True)
class ChatModel:
    """A loaded model with its tokenizer, mesh and chat template."""

    decoder: Decoder
    tokenizer: Tokenizer
    mesh: Mesh
    template: ChatTemplate


def make_answerer(load: Callable[[], ChatModel], max_new_tokens: int) -> Answerer:
    """Return a function that answers prompts greedily with the model that ``load`` returns.

    Each call of the returned function loads the model, and releases it after the last answer. Two
    models are therefore never in memory at the same time.
    """

    def answers(prompts: Sequence[Prompt]) -> Iterator[tuple[int, str | None]]:
        model = load()
        rows = [np.array(model.template.prompt(prompt), np.int32) for prompt in prompts]
        longest = model.decoder.ends.config.context_length - max_new_tokens
        fit = [index for index, row in enumerate(rows) if len(row) <= longest]
        yield from ((index, None) for index, row in enumerate(rows) if len(row) > longest)
        written = written_answers(
            model.decoder,
            model.tokenizer,
            model.mesh,
            [rows[index] for index in fit],
            [AnswerSpec((), max_new_tokens, Sampling())] * len(fit),
            model.template.stop_ids,
        )
        yield from ((fit[number], text.strip()) for number, text in written)

    return answers
