"""Answers of a pipeline's models to prompts and questions, generated once and cached."""

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

BATCH = 64
"""Number of questions in a batch."""


def render_prompts(
    questions: Sequence[str], config: TrainConfig, max_new_tokens: int
) -> tuple[list[list[int]], ChatTemplate, Tokenizer]:
    """Render the questions with the chat template of ``config``.

    Returns the tokens of each rendered question, the template and the tokenizer. Raises UserError
    if a question leaves no room for ``max_new_tokens`` in the context, or if the tokenizer has no
    chat tokens.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    chat = config.data.chat or ChatConfig()
    template = load_chat_template(tokenizer, chat.template)
    prompts = [template.prompt([Message("user", text)]) for text in questions]
    for text, prompt in zip(questions, prompts, strict=True):
        if len(prompt) + max_new_tokens > config.model.context_length:
            raise UserError(
                f"{text[:40]!r} takes {len(prompt)} tokens: with max_new_tokens={max_new_tokens}, "
                f"it exceeds model.context_length={config.model.context_length}; shorten the "
                "prompt, or set a lower max_new_tokens."
            )
    return prompts, template, tokenizer


def sample_answers(
    questions: Sequence[str],
    source: str,
    config: TrainConfig,
    *,
    max_new_tokens: int,
    identity: str,
    cache: epath.Path,
) -> list[str]:
    """Return one greedy answer to each question, generated with the weights in ``source``.

    The architecture, tokenizer and mesh are taken from ``config``. If the file ``cache`` was
    written for equal prompts, settings and weights, the answers are read from the file. Otherwise
    the answers are generated and written to the file. ``identity`` identifies the weights.
    """
    prompts, template, tokenizer = render_prompts(questions, config, max_new_tokens)
    inputs = json.dumps([prompts, max_new_tokens, identity, config.compute.dtype])
    fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
    if cache.exists():
        cached = json.loads(cache.read_text())
        if cached["fingerprint"] == fingerprint:
            return cached["answers"]
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
    cache.parent.mkdir(parents=True, exist_ok=True)
    content = {"fingerprint": fingerprint, "answers": answers}
    write_atomic(cache, json.dumps(content, ensure_ascii=False, indent=1).encode())
    return answers


def _batches(prompts: Sequence[list[int]]) -> list[Sequence[list[int]]]:
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
