"""A model that answers prompts in its chat template, loaded when the first answer is needed."""

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
    """A model with what it needs to chat."""

    decoder: Decoder
    tokenizer: Tokenizer
    mesh: Mesh
    template: ChatTemplate


def make_answerer(load: Callable[[], ChatModel], max_new_tokens: int) -> Answerer:
    """Greedy answers of the model that ``load`` brings; it is let go of with the last answer."""

    def answers(prompts: Sequence[Prompt]) -> Iterator[tuple[int, str | None]]:
        talker = load()
        rows = [np.array(talker.template.prompt(prompt), np.int32) for prompt in prompts]
        room = talker.decoder.ends.config.context_length - max_new_tokens
        fit = [place for place, row in enumerate(rows) if len(row) <= room]
        yield from ((place, None) for place, row in enumerate(rows) if len(row) > room)
        written = written_answers(
            talker.decoder,
            talker.tokenizer,
            talker.mesh,
            [rows[place] for place in fit],
            [AnswerSpec((), max_new_tokens, Sampling())] * len(fit),
            talker.template.stop_ids,
        )
        yield from ((fit[number], text.strip()) for number, text in written)

    return answers
