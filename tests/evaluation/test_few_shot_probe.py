"""A probe logs the few-shot score that ``evaluate`` computes for the same model."""

from dataclasses import replace
import json

import numpy as np
import pytest

from llama_cpt import evaluate, train
from llama_cpt.config.loading import save_config
from llama_cpt.config.lora import LoraConfig
from llama_cpt.config.schema import EvaluationConfig, MeshConfig
from llama_cpt.runtime.errors import UserError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")

from llama_cpt.evaluation.few_shot_probe import FewShotProbe  # noqa: E402
from llama_cpt.evaluation.scores import read_scores  # noqa: E402
from tests.runs import run_of  # noqa: E402
from tests.tiny_run import WORDS  # noqa: E402

TASK = """task: follows
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
num_fewshot: 3
doc_to_text: "{{{{word}}}}"
doc_to_choice: ["hill", "water", "fire", "wood"]
doc_to_target: "{{{{next}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def task(tmp_path) -> str:
    """A task file with one question per word and the next word as the answer."""
    words = WORDS["en"]
    records = [{"word": word, "next": number % 4} for number, word in enumerate(words * 3)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    file = tmp_path / "follows.yaml"
    file.write_text(TASK.format(file=rows))
    return str(file)


@pytest.mark.slow
def test_probe_logs_the_score_of_evaluate(make_config, task, tmp_path):
    output = tmp_path / "run"
    evaluation = EvaluationConfig(100, early_evaluations=False, documents=4, batch_size=8)
    sizes = {"mesh": MeshConfig(2, 4, 1), "microbatch_size": 8, "global_batch_size": 8}
    config = make_config(output, evaluation=evaluation, **sizes)
    save_config(config, tmp_path / "config.json")
    options = ["--probe", task, "--probe-shots", "2", "--probe-limit", "16"]
    assert train.main([str(tmp_path / "config.json"), *options]) == 0
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    found = {line["step"]: line["probe/follows"] for line in lines if "probe/follows" in line}
    assert list(found) == [0, 8]

    scores = str(tmp_path / "scores")
    shown = ["--shots", "2", "--limit", "16", "--output", scores]
    assert evaluate.main([f"after={output}", "--tasks", task, *shown]) == 0
    expected = read_scores(f"{scores}/after")["follows"]
    assert found[8] == np.mean([score.score for score in expected])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, data=replace(c.data, heldout=())), "data.heldout is empty"),
        (lambda c: replace(c, init_from="x", lora=LoraConfig(2, 4)), "does not support lora"),
    ],
)
def test_unsupported_probe_is_rejected(change, message, make_config, tmp_path):
    run = run_of(make_config(tmp_path / "run"))
    mesh = run.program.mesh
    options = {"data": "", "shots": None, "limit": 4, "tokenizer": run.tokenizer, "mesh": mesh}
    with pytest.raises(UserError, match=message):
        FewShotProbe(change(run.config), ["mmlu"], **options)
    with pytest.raises(UserError, match="humaneval: a probe does not run code"):
        FewShotProbe(run.config, ["humaneval"], **options)
