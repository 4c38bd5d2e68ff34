"""Generation: the ids of transformers, the logits of the full forward."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llama_cpt.model.decoder import make_decoder  # noqa: E402
from llama_cpt.model.generate import generate  # noqa: E402
from llama_cpt.model.hf_weights import load_hf  # noqa: E402
from tests.model.hf_models import SMALL, save_llama  # noqa: E402
from tests.model.test_hf_parity import VARIANTS  # noqa: E402

LENGTHS = (5, 41, 1, 23)


def prompts(vocab_size: int) -> list[list[int]]:
    draw = np.random.default_rng(2)
    return [draw.integers(2, vocab_size, length).tolist() for length in LENGTHS]


def transformers_greedy(path: str, rows: list[list[int]], count: int) -> list[list[int]]:
    """Padded on the left, as its own tokenizers do for generation."""
    torch.set_num_threads(1)
    model = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[:, longest:].tolist()


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_ids_are_those_of_transformers(name, tmp_path):
    path = save_llama(tmp_path, **VARIANTS[name])
    rows = prompts({**SMALL, **VARIANTS[name]}["vocab_size"])
    ours = generate(make_decoder(load_hf(path)), rows, max_new_tokens=64)
    assert ours == transformers_greedy(path, rows, 64)
