"""The README of an exported model: its structure, and the numbers of rows and tokens."""

from fractions import Fraction
import re

import numpy as np

from llama_cpt.data.mixture import build_mixture
from llama_cpt.weights.model_card import (
    MergedModel,
    merged_model_card,
    model_card,
    training_sections,
)
from llama_cpt.weights.provenance import Origin


def test_names_are_escaped():
    origin = Origin(base="a`b", runs=("<i>\nrun",), folder="")
    name = 'm"\n```\n<b>'
    card = model_card(name, origin, ["LICENSE: [x](y)\nz"], [])
    assert card.splitlines()[:7] == [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "license: other",
        "license_link: LICENSE%3A%20%5Bx%5D%28y%29%0Az",
        "---",
        "",
    ]
    assert "Started from `` a`b ``, then run `<i> run`." in card
    assert "\n<b>" not in card and card.count("\n```\n") == 1
    assert r'from_pretrained("m\"\n```\n<b>")' in card


def test_card_of_a_merge_names_all_models():
    models = [
        MergedModel("run|1", Fraction(1), Origin("org/base", "", ("cpt",)), [("manifest", "aa")]),
        MergedModel("org/chat", Fraction(1, 2), Origin("org/chat", ""), [("a.safetensors", "bb")]),
        MergedModel("org/base", Fraction(-1, 2), Origin("org/base", ""), [("b.safetensors", "cc")]),
    ]
    card = merged_model_card("m", models, ["NOTICE"])
    header = card.split("---\n")[1]
    assert "base_model:\n- org/base\n- org/chat\nbase_model_relation: merge\n" in header
    assert "tags:\n- merge\n" in header and "license" not in header
    for row in (
        r"| 1 | run\|1 | org/base, then cpt |",
        "| 1/2 | org/chat |  |",
        "| -1/2 | org/base |  |",
        "| org/chat | a.safetensors | bb |",
    ):
        assert row in card, row


def test_tokens_exclude_rows_that_rollbacks_passed_over(make_config, tmp_path):
    config = make_config(tmp_path / "run", num_steps=16)
    sizes = {"zh": 1000, "en": 1000}
    mixture = build_mixture(config.data, sizes, seed=config.seed, global_batch_size=4)
    # Step 7 to step 10 were taken back, and then step 13.
    passed_over = [[24, 40], [64, 68]]
    rows = [*range(24), *range(40, 64), *range(68, 84)]
    assert len(rows) == 16 * 4
    corpus = mixture.locate(np.array(rows))[0]
    metadata = {"step": 16, "rows_consumed": 84, "spikes": {"skipped_rows": passed_over}}
    training, data = training_sections(config, metadata, [])
    assert "| tokens | 2,048 (64 rows of 32) |" in training
    assert "| rows that rollbacks passed over | 20 |" in training
    for index, (group, name) in enumerate((("additional", "zh"), ("original", "en"))):
        assert f"| {group} | {name} | {32 * np.count_nonzero(corpus == index):,} |" in data
    realized = re.search(r"realized (\S+), with the rows that rollbacks", data)
    assert realized and float(realized[1]) == float(f"{float(mixture.realized_almr(84)):.6g}")
    plain = training_sections(config, {"step": 16, "rows_consumed": 64}, [])
    assert "rollbacks" not in "".join(plain)
