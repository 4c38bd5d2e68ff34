"""The README of an exported model: names cannot change its structure."""

from fractions import Fraction

from llama_cpt.weights.model_card import MergedModel, merged_model_card, model_card
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
