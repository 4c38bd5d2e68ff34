"""A run on documents and conversations of three corpora, with weights that change by step."""

from dataclasses import replace
import logging

from llama_cpt.config.schema import ChatConfig, CorpusConfig
from llama_cpt.training.stop import Outcome
from tests.runs import learnt, train


def test_mixed_run_reports_each_corpus(corpora, make_config, tmp_path, caplog):
    config = make_config(tmp_path / "whole")
    data = replace(
        config.data,
        prepared=str(tmp_path / "prepared"),
        almr=0.5,
        additional=(
            CorpusConfig("zh", str(corpora / "zh.jsonl"), kind="documents"),
            CorpusConfig("chats", str(corpora / "zh.chats.jsonl"), ((0, 0.0), (4, 3.0))),
        ),
        chat=ChatConfig(),
        heldout=(),
        max_epochs=20.0,
    )
    data = replace(data, original=tuple(replace(one, kind="documents") for one in data.original))
    whole = replace(config, data=data)
    with caplog.at_level(logging.INFO, "llama_cpt"):
        assert train(whole) is Outcome.FINISHED
    lines = {line["step"]: line for line in learnt(tmp_path / "whole") if "train/loss" in line}
    assert "train/chats/loss" not in lines[4] and "train/chats/loss" in lines[8]
    assert [lines[step]["mixture/chats/epochs"] > 0 for step in (4, 8)] == [False, True]
    for name in ("zh", "chats", "en"):
        assert lines[8][f"train/{name}/loss"] > 0
    last = next(one for one in caplog.messages if one.startswith("step      8/8"))
    assert " zh " in last and " chats " in last and " original " in last
    assert " additional " not in last
