"""What a stage of a pipeline answers: prompts and an examination, asked once and kept."""

from collections.abc import Sequence
import hashlib
import json

from etils import epath

from llama_cpt.config.schema import ChatConfig, TrainConfig
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import ChatTemplate, load_chat_template
from llama_cpt.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.generation.generate import generate
from llama_cpt.generation.load_decoder import load_decoder
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.progress import Progress

# Questions answered at a time.
BATCH = 64


def render_prompts(
    questions: Sequence[str], config: TrainConfig, max_new_tokens: int
) -> tuple[list[list[int]], ChatTemplate, Tokenizer]:
    """The questions as ``config``'s template puts them.

    Raises UserError where one leaves its answer no room, or the tokenizer cannot chat.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    chat = config.data.chat or ChatConfig()
    template = load_chat_template(tokenizer, chat.template)
    prompts = [template.prompt([Message("user", text)]) for text in questions]
    for text, prompt in zip(questions, prompts, strict=True):
        if len(prompt) + max_new_tokens > config.model.context_length:
            raise UserError(
                f"{text[:40]!r} takes {len(prompt)} tokens: with max_new_tokens={max_new_tokens} "
                f"that is over model.context_length={config.model.context_length}."
            )
    return prompts, template, tokenizer


def sample_answers(
    questions: Sequence[str],
    source: str,
    config: TrainConfig,
    *,
    max_new_tokens: int,
    identity: str,
    kept: epath.Path,
) -> list[str]:
    """One greedy answer to each question by the weights in ``source``.

    ``config`` says the model, the tokenizer and the mesh. ``kept`` is the file in which the answers
    are found again, as long as ``identity``, the weights' own, and the prompts are the same.
    """
    prompts, template, tokenizer = render_prompts(questions, config, max_new_tokens)
    asked = json.dumps([prompts, max_new_tokens, identity, config.compute.dtype])
    fingerprint = hashlib.sha256(asked.encode()).hexdigest()
    if kept.exists():
        found = json.loads(kept.read_text())
        if found["fingerprint"] == fingerprint:
            return found["answers"]
    mesh = make_mesh(config.mesh.without_context)
    decoder = load_decoder(source, config.model, mesh, config.compute.dtype)
    answers: list[str] = []
    with Progress("answers", float(len(prompts)), "questions") as progress:
        for part in _batches(prompts):
            rows = generate(
                decoder,
                part,
                max_new_tokens=max_new_tokens,
                stop_ids=template.stop_ids,
                mesh=mesh,
            )
            answers += [tokenizer.decode(row).strip() for row in rows]
            progress.update(float(len(part)))
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = {"fingerprint": fingerprint, "answers": answers}
    write_atomic(kept, json.dumps(lines, ensure_ascii=False, indent=1).encode())
    return answers


def _batches(prompts: Sequence[list[int]]) -> list[Sequence[list[int]]]:
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
