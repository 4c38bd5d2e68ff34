"""Preference metrics have TRL's names, and unlearned chosen answers cause one warning."""

from dataclasses import replace
import json
import logging
from typing import Any

import jax
import numpy as np
import pytest

from llama_cpt.config.schema import ChatConfig, PreferenceConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training.goodput import Goodput
from llama_cpt.training.report import Reporter, mean_metrics
from llama_cpt.training.run import build_run

PAIRS = 4.0


def metrics_of(log_ratio: float) -> dict[str, Any]:
    """Return the metrics of a step with four pairs.

    The chosen answers are ``log_ratio`` nats above the reference.
    """
    per_pair = {
        "rewards/chosen": 0.1 * log_ratio,
        "rewards/rejected": -0.5,
        "rewards/accuracies": 0.75,
        "logps/chosen": -40.0 + log_ratio,
        "logps/rejected": -50.0,
        "nll": 1.5,
    }
    sums: dict[str, Any] = {
        name: (np.float32(PAIRS * x), np.float32(PAIRS)) for name, x in per_pair.items()
    }
    sums["corpus_loss"] = np.array([1.0, 6.0], np.float32), np.array([1.0, 3.0], np.float32)
    return {"loss": np.float32(1.75), "grad_norm": np.float32(1), "sums": sums}


@pytest.fixture
def report_steps(make_config, tmp_path, caplog):
    """Return a function that reports steps with the given objective and log-ratios.

    The function returns the lines of metrics.jsonl and the messages of levels INFO and WARNING.
    """

    def report_all(
        objective: PreferenceConfig, log_ratios: list[float]
    ) -> tuple[list[dict[str, Any]], str, str]:
        config = make_config(tmp_path / "run")
        run = build_run(config, make_mesh(config.mesh, jax.devices()[:1]))
        data = replace(config.data, chat=ChatConfig())
        run = replace(run, config=replace(config, objective=objective, data=data))
        caplog.clear()
        with caplog.at_level(logging.INFO, "llama_cpt"), Reporter(run, 0, Goodput()) as report:
            for step, log_ratio in enumerate(log_ratios, 1):
                report.step(step, metrics_of(log_ratio), 1e-3)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        levels = (logging.INFO, logging.WARNING)
        info, warnings = (
            "\n".join(r.getMessage() for r in caplog.records if r.levelno == level)
            for level in levels
        )
        return [json.loads(line) for line in lines], info, warnings

    return report_all


def test_preference_metrics_have_trl_names(report_steps):
    (line,), console, _ = report_steps(PreferenceConfig(loss="sigmoid"), [5.0])
    want = {
        "rewards/chosen": 0.5,
        "rewards/rejected": -0.5,
        "rewards/margins": 1.0,
        "rewards/accuracies": 0.75,
        "logps/chosen": -35.0,
        "logps/rejected": -50.0,
        "nll": 1.5,
    }
    for name, value in want.items():
        assert line[name] == pytest.approx(value)
        assert f"{name} {value:.4g}" in console
    assert line["train/loss"] == 1.75
    assert line["train/zh/loss"] == 1.0 and line["train/original/loss"] == 2.0


def test_warns_once_if_chosen_answers_are_unlearned(report_steps):
    objective = PreferenceConfig(loss="sigmoid", chosen_logp_drop_warning=20.0)
    _, _, warnings = report_steps(objective, [0.0, -19.0, -21.0, -30.0])
    assert "logps/chosen is 21.0 nats below" in warnings and "\n" not in warnings


def test_reference_free_loss_does_not_warn(report_steps):
    assert not report_steps(PreferenceConfig(loss="simpo"), [-500.0])[2]


def test_means_omit_sums_without_weight():
    sums = {"rewards/chosen": (1.0, 2.0), "rewards/rejected": (0.0, 0.0), "kl": (3.0, 4.0)}
    assert mean_metrics(sums) == {"rewards/chosen": 0.5, "kl": 0.75}
