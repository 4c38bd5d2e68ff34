"""Comparison of a running server with the model in a Hugging Face folder."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from llama_cpt.config.schema import MeshConfig, ModelConfig
from llama_cpt.generation.decoder import Decoder, load_decoder
from llama_cpt.model.llama import abstract_llama
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress
from llama_cpt.serving.answers import (
    AnswerComparison,
    ServedAnswer,
    compare_answer,
    ids_of_texts,
)
from llama_cpt.serving.findings import (
    Finding,
    PromptPair,
    answer_findings,
    prompt_findings,
    sampling_finding,
)
from llama_cpt.serving.prompts import Prompt, cases, our_ids
from llama_cpt.serving.server import Answer, Server
from llama_cpt.weights.hf_names import parameters_by_path
from llama_cpt.weights.hf_weights import physical_memory
from llama_cpt.weights.prompt_format import PromptFormat, prompt_format
from llama_cpt.weights.source import RunFolder, open_source

MAX_TOKENS = 48
"""Maximum length of the answer to a question in tokens."""
MIN_TOKENS = 8


def check_server(folder: str, url: str, model: str = "") -> list[Finding]:
    """Compare the server at ``url`` with the model in ``folder``, and return all findings.

    ``model`` is the name of the served model; it can be empty if the server serves one model. The
    server is called before the weights are loaded. Raises UserError if the server cannot be reached
    or sends an invalid reply, or if the memory is too small for the weights in float32.
    """
    source = open_source(folder)
    if isinstance(source, RunFolder):
        raise UserError(
            f"{folder} is a run; export it with convert to-hf, and name the exported folder."
        )
    config = source.architecture
    prompts = prompt_format(source)
    _check_memory(config)
    server = Server(url, model, config.vocab_size)
    pairs, answers, max_tokens = _query(server, prompts, config)
    sampling = server.sampling_defaults()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    decoder = load_decoder(folder, config, mesh, "float32")
    comparisons = _compare_answers(decoder, mesh, prompts, pairs, answers, max_tokens)
    return [
        *prompt_findings(pairs, prompts),
        *answer_findings(comparisons, prompts, max_tokens),
        sampling_finding(prompts.generation, sampling),
    ]


def _check_memory(config: ModelConfig) -> None:
    abstract = parameters_by_path(abstract_llama(config))
    needed = 4 * sum(parameter.get_value().size for parameter in abstract.values())
    if needed > physical_memory():
        raise UserError(
            f"the weights take {needed / 1e9:.0f} GB in float32, which is more than the memory of "
            "this machine; use a machine with more memory."
        )


def _query(
    server: Server, prompts: PromptFormat, config: ModelConfig
) -> tuple[list[PromptPair], list[Answer], int]:
    """Send all prompts. Return the ids of each prompt, the answers, and their maximum length."""
    known = []
    for case in cases(prompts):
        try:
            known.append((case, our_ids(prompts, case.prompt)))
        except UserError:
            # Some chat templates reject a system message, so users cannot send it either.
            if case.kind != "conversation":
                raise
    room = config.context_length - max(len(ours) for _, ours in known)
    if room < MIN_TOKENS:
        raise UserError(
            f"the prompts leave no room for answers in the model's context of "
            f"{config.context_length} tokens; use a model with a longer context."
        )
    max_tokens = min(MAX_TOKENS, room)
    pairs, answers = [], []
    with Progress("compare prompts and answers", float(len(known)), "prompts") as progress:
        for case, ours in known:
            answer = server.answer(case.prompt, max_tokens if case.kind == "question" else 1)
            pairs.append(PromptPair(case, ours, _served_ids(server, case.prompt, answer)))
            answers.append(answer)
            progress.update(1.0)
    return pairs, answers, max_tokens


def _served_ids(server: Server, prompt: Prompt, answer: Answer) -> list[int] | int | None:
    """Return the ids of the prompt that was answered or, if they are unknown, their number."""
    if answer.prompt_ids is not None:
        return answer.prompt_ids
    ids = server.tokenize(prompt)
    # The number of answered tokens shows whether the endpoint describes the answered prompt.
    if ids is not None and answer.prompt_tokens in (None, len(ids)):
        return ids
    return answer.prompt_tokens


def _compare_answers(
    decoder: Decoder,
    mesh: Mesh,
    prompts: PromptFormat,
    pairs: Sequence[PromptPair],
    answers: Sequence[Answer],
    max_tokens: int,
) -> list[AnswerComparison]:
    """Compare the answers to questions, except if the ids of a question are unknown and differ."""
    asked = []
    for pair, answer in zip(pairs, answers, strict=True):
        # The answers are compared after the server's prompts, even if the prompts differ.
        prompt = pair.served if isinstance(pair.served, list) else pair.ours
        if pair.case.kind == "question" and pair.served in (None, prompt, len(prompt)):
            asked.append((pair.case.label, prompt, answer))
    texts = [(prompt, answer.text) for _, prompt, answer in asked if answer.ids is None]
    encoded = iter(ids_of_texts(decoder, mesh, prompts, texts, max_tokens))
    compared = []
    for label, prompt, answer in asked:
        ids = next(encoded) if answer.ids is None else answer.ids
        end_id = ids[-1] if ids and ids[-1] in prompts.stop_ids else None
        served = ServedAnswer(
            label,
            prompt,
            ids if end_id is None else ids[:-1],
            answer.ids is not None,
            end_id,
            answer.finish_reason,
            answer.logprobs,
        )
        compared.append(compare_answer(decoder, mesh, served, prompts.stop_ids))
    return compared
