"""Scores with tokenizers of different kinds, compared with the Hugging Face backend in float32."""

from typing import Any

import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig
from llama_cpt.generation.decoder import load_decoder
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.weights.prompt_format import prompt_format
from llama_cpt.weights.source import open_source
from tests.data.json_tokenizers import BOS_EOS, CHATML, write_tokenizer
from tests.weights.hf_models import save_llama

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from llama_cpt.evaluation.harness import HarnessModel  # noqa: E402

SAME = {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"}
LLAMA3 = CHATML.replace("{% for", "{{ bos_token }}{% for", 1)
TURNS = [
    {"role": "user", "content": "Is it 你好?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "<think> or no?"},
]


@pytest.fixture(scope="module")
def decoder_and_folder(tmp_path_factory):
    """A model with more embedding rows than any of the tokenizers has tokens."""
    folder = tmp_path_factory.mktemp("padded")
    save_llama(folder, vocab_size=288, num_hidden_layers=1, max_position_embeddings=192)
    config = open_source(str(folder)).architecture
    mesh = make_mesh(MeshConfig(1, 4, 2))
    return load_decoder(str(folder), config, mesh, "float32"), mesh, folder


@pytest.mark.parametrize(
    "settings",
    [
        {"config": BOS_EOS | {"chat_template": CHATML}},
        {"config": BOS_EOS | {"chat_template": CHATML}, "prefix": ""},
        {"config": BOS_EOS | {"chat_template": LLAMA3}, "added": ("你好", "<think>", "</think>")},
        {"config": SAME | {"chat_template": CHATML}, "prefix": "<|end_of_text|>"},
        {"config": SAME | {"bos_token": None, "chat_template": CHATML}, "prefix": ""},
    ],
    ids=["bos not in template", "no bos", "added text", "bos is eos", "null bos"],
)
def test_scores_equal_the_harness(settings, decoder_and_folder):
    decoder, mesh, folder = decoder_and_folder
    write_tokenizer(folder, **settings)
    prompts = prompt_format(open_source(str(folder)))
    ours = HarnessModel(decoder, prompts.tokenizer, mesh, prompts.template, prompts.stop_ids)
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 4}
    options["pretrained"] = str(folder)
    theirs = HFLM(**options)

    def asked(model: Any) -> list[Instance]:
        rendered = model.apply_chat_template(TURNS)
        begun = model.apply_chat_template([*TURNS, {"role": "assistant", "content": "it"}], False)
        pairs = [(rendered, " yes"), (begun, " is"), ("Is 你好 it? ", "a b"), ("", "The <think>")]
        return [Instance("loglikelihood", {}, one, 0, ("t", n, 1)) for n, one in enumerate(pairs)]

    found, wanted = ours.loglikelihood(asked(ours)), theirs.loglikelihood(asked(theirs))
    # A continued assistant turn is rendered without its end only by newer templates.
    checked = [0, 2, 3]
    np.testing.assert_allclose(
        [found[n][0] for n in checked], [wanted[n][0] for n in checked], atol=1e-4
    )
    texts = [Instance("loglikelihood_rolling", {}, ("你好 or <think>no",), 0, ("r", 0, 1))]
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts), atol=1e-4
    )
