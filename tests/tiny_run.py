"""Fixtures with a corpus of two languages and a config that trains on it in seconds."""

from collections.abc import Callable
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import (
    CheckpointConfig,
    ComputeConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)

WORDS = {
    "zh": ["山", "水", "火", "木", "日", "月", "人", "口"],
    "en": ["hill", "water", "fire", "wood", "sun", "moon", "man", "mouth"],
}
ALMR = 0.29


def tiny_model(vocab_size: int, *, num_layers: int = 1, context_length: int = 128) -> ModelConfig:
    """Return the config of a model that is built and run in milliseconds."""
    return ModelConfig(
        vocab_size=vocab_size,
        embed_dim=16,
        mlp_dim=32,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        rope_theta=1e4,
        rope_scaling=None,
        norm_eps=1e-5,
        tied_embeddings=True,
        context_length=context_length,
    )


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> Path:
    """A folder with ``zh.jsonl``, ``en.jsonl``, their held-out documents and
    ``tokenizer.model``."""
    folder = tmp_path_factory.mktemp("corpora")
    draw = np.random.default_rng(0)
    for language, words in WORDS.items():
        for name, documents in ((language, 120), (f"{language}.heldout", 6)):
            texts = [" ".join(draw.choice(words, draw.integers(5, 40))) for _ in range(documents)]
            lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words) for words in WORDS.values()] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        bos_id=1,
        eos_id=2,
        normalization_rule_name="identity",
        control_symbols=["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        minloglevel=2,
    )
    for language, words in WORDS.items():
        _write_chats(folder, language, words)
    return folder


def _write_chats(folder: Path, language: str, words: list[str]) -> None:
    """Write ``LANGUAGE.chats.jsonl`` and ``LANGUAGE.preferences.jsonl`` with one word per turn."""
    chats, preferences = [], []
    for number in range(40):
        prompt, chosen, rejected = (words[(number + shift) % len(words)] for shift in (0, 1, 2))
        question = {"role": "user", "content": prompt}
        good, bad = ({"role": "assistant", "content": text} for text in (chosen, rejected))
        chats.append({"messages": [question, good]})
        preferences.append({"prompt": [question], "chosen": [good], "rejected": [bad]})
    for name, lines in (("chats", chats), ("preferences", preferences)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{language}.{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def make_config(corpora) -> Callable[..., TrainConfig]:
    """A function ``make_config(output, **fields)`` that returns a config of 8 steps on one
    device."""
    vocab_size = sentencepiece.SentencePieceProcessor(
        model_file=str(corpora / "tokenizer.model")
    ).get_piece_size()
    model = tiny_model(vocab_size, num_layers=2, context_length=32)

    def corpus(name: str, file: str) -> tuple[CorpusConfig, ...]:
        return (CorpusConfig(name, str(corpora / f"{file}.jsonl")),)

    data = DataConfig(
        tokenizer=str(corpora / "tokenizer.model"),
        prepared=str(corpora / "prepared"),
        sequence_length=32,
        almr=ALMR,
        additional=corpus("zh", "zh"),
        original=corpus("en", "en"),
        heldout=corpus("zh", "zh.heldout") + corpus("en", "en.heldout"),
    )

    def make(output: Path, **fields) -> TrainConfig:
        config = {
            "model": model,
            "data": data,
            "optimizer": OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=2),
            "num_steps": 8,
            "global_batch_size": 4,
            "microbatch_size": 2,
            "mesh": MeshConfig(1, 1, 1),
            "compute": ComputeConfig(dtype="float32", remat="none", loss_chunk_tokens=24),
            "checkpoint": CheckpointConfig(every_steps=3),
            "evaluation": EvaluationConfig(every_steps=5, documents=4, batch_size=2),
            "log_every_steps": 1,
        }
        return TrainConfig(output=str(output), **(config | fields))

    return make
