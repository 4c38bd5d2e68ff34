"""The README of an exported model: names cannot change its structure."""

from llama_cpt.weights.model_card import model_card
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
