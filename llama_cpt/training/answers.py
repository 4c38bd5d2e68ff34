"""What a stage of a pipeline answers: prompts and an examination, asked once and kept."""

from collections.abc import Sequence
from dataclasses import dataclass
import hashlib
import json

from etils import epath
import jax

from llama_cpt.config import TrainConfig
from llama_cpt.data.chat_template import load_chat_template
from llama_cpt.data.conversations import Message
from llama_cpt.data.token_rows import write_atomically
from llama_cpt.data.tokenizer import load_tokenizer
from llama_cpt.model.generate import generate
from llama_cpt.model.load_decoder import load_decoder
from llama_cpt.progress import Progress
from llama_cpt.sharding import make_mesh

# Questions answered at a time.
BATCH = 64


@dataclass(frozen=True)
class Questionnaire:
    """What every stage is asked."""

    questions: tuple[str, ...]
    max_new_tokens: int

    def fingerprint(self, source: str, step: int) -> str:
        """Of these questions put to the model of ``source`` after ``step``."""
        asked = json.dumps([self.questions, self.max_new_tokens, source, step])
        return hashlib.sha256(asked.encode()).hexdigest()


def answers_of(
    source: str, step: int, config: TrainConfig, questionnaire: Questionnaire, kept: epath.Path
) -> list[str]:
    """One greedy answer to each question by the weights in ``source``.

    ``config`` says the model, the tokenizer and the mesh; ``step`` tells one state of ``source``
    from another. ``kept`` is the file in which the answers are found again.
    """
    fingerprint = questionnaire.fingerprint(source, step)
    if kept.exists():
        found = json.loads(kept.read_text())
        if found["fingerprint"] == fingerprint:
            return found["answers"]
    answers = _answered(source, config, questionnaire)
    if jax.process_index() == 0:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lines = {"fingerprint": fingerprint, "answers": answers}
        write_atomically(kept, json.dumps(lines, ensure_ascii=False, indent=1).encode())
    return answers


def _answered(source: str, config: TrainConfig, questionnaire: Questionnaire) -> list[str]:
    mesh = make_mesh(config.mesh)
    tokenizer = load_tokenizer(config.data.tokenizer)
    template = load_chat_template(
        tokenizer, config.data.chat.template if config.data.chat else "auto"
    )
    decoder = load_decoder(source, config.model, mesh, config.compute.dtype)
    prompts = [template.prompt([Message("user", text)]) for text in questionnaire.questions]
    answers: list[str] = []
    with Progress("answers", float(len(prompts)), "questions") as progress:
        for part in _batches(prompts):
            rows = generate(
                decoder,
                part,
                max_new_tokens=questionnaire.max_new_tokens,
                stop_ids=template.stop_ids,
                mesh=mesh,
            )
            answers += [tokenizer.decode(row).strip() for row in rows]
            progress.update(float(len(part)))
    return answers


def _batches(prompts: Sequence[list[int]]) -> list[Sequence[list[int]]]:
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
