"""Learning curves: reading from a run, the finding in the title, and the PNG."""

import json
import re

import numpy as np
import pytest

from llama_cpt.evaluation.learning_curves import Curve, draw_curves, finding, read_curve
from llama_cpt.runtime.errors import UserError

NAMES = {"zh": "Chinese", "en": "English"}


def curve(label, zh, en):
    tokens = np.linspace(0, 1e6, len(zh))
    return Curve(label, tokens, {"zh": np.array(zh, float), "en": np.array(en, float)})


def write_run(folder, points):
    folder.mkdir()
    config = {"global_batch_size": 4, "data": {"sequence_length": 256}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": 5, "train/loss": 3.0}]
    for step, zh, en in points:
        lines.append({"step": step, "eval/zh/bits_per_byte": zh, "eval/en/bits_per_byte": en})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def test_curve_is_read_from_a_run(tmp_path):
    run = write_run(tmp_path / "run", [(0, 4.0, 0.5), (10, 2.0, 0.6)])
    read = read_curve(run, "ALMR 0.33", ("zh", "en"))
    assert read.tokens.tolist() == [0, 10 * 4 * 256]
    assert read.bits["zh"].tolist() == [4.0, 2.0]
    assert read.change("en") == pytest.approx(1.2)


def test_run_with_too_few_evaluations_is_rejected(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        read_curve(str(tmp_path / "nothing"), "x", ("zh",))
    run = write_run(tmp_path / "run", [(0, 4.0, 0.5)])
    with pytest.raises(UserError, match="1 held-out evaluations of zh"):
        read_curve(run, "x", ("zh",))


@pytest.mark.parametrize(
    ("zh", "en", "words"),
    [
        ([4, 1], [0.5, 0.51], "learns Chinese .* and keeps English"),
        ([4, 1], [0.5, 0.6], "learns Chinese .* and loses some English"),
        ([4, 1], [0.5, 2], "learns Chinese .* and forgets English"),
        ([4, 4], [0.5, 0.4], "does not learn Chinese .* and keeps English"),
    ],
)
def test_title_follows_the_numbers(zh, en, words):
    found = finding([curve("ALMR 0.33", zh, en)], "zh", "en", NAMES)
    assert re.search(words, found)
    assert f"({en[0]:.2f} to {en[-1]:.2f})" in found


def test_png_has_readable_size(tmp_path):
    curves = [
        curve("ALMR 0.33", [4, 2, 1], [0.5, 0.6, 0.5]),
        curve("ALMR 1.0", [4, 1, 1], [1, 3, 4]),
    ]
    draw_curves(curves, tmp_path / "a.png", added="zh", original="en", names=NAMES)
    content = (tmp_path / "a.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == 1600
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
