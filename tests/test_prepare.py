"""Tests that the prepare command prints the counts and rows that a run reads."""

import json
from pathlib import Path
import re
import subprocess
import sys

import numpy as np
import pytest

from llama_cpt.config.loading import load_config
from llama_cpt.data.batch import TokenBatch
from llama_cpt.data.loader import read_batch
from llama_cpt.data.mixture import build_mixture
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.rows import TokenRows
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.prepare import main
from llama_cpt.runtime.errors import USAGE, USER_ERROR, UserError
from tests.byte_tokenizer import write_byte_tokenizer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
from llama_cpt.config.schema import *

config = TrainConfig(
    output="unused",
    model=ModelConfig(
        vocab_size=512, embed_dim=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=8, rope_theta=1e4, rope_scaling=None, norm_eps=1e-5, tied_embeddings=True,
        context_length=64,
    ),
    data=DataConfig(
        tokenizer={folder!r} + "/tokenizer.model", prepared={folder!r} + "/prepared",
        sequence_length=15, almr=0.25, max_epochs=2.0,
        additional=(CorpusConfig("zh", {folder!r} + "/zh.jsonl"),),
        original=(CorpusConfig("en", {folder!r} + "/en.jsonl"),),
        heldout=(CorpusConfig("zh", {folder!r} + "/held.jsonl"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=1e-3),
    num_steps=10,
    global_batch_size=4,
)
"""


@pytest.fixture
def config_path(tmp_path):
    write_byte_tokenizer(tmp_path)
    # 18 tokens per document in zh, 14 in en: 11 rows and 26 rows of 16.
    for name, text, count in (("zh", "中文 12345678 x", 9), ("en", "twelve bytes", 30)):
        lines = [json.dumps({"text": text})] * count
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": "另一个"}))
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(tmp_path)))
    return str(tmp_path / "config.py")


def test_report_has_corpora_and_mixture(config_path, capsys):
    main([config_path])
    assert capsys.readouterr().out.splitlines() == [
        "zh: 9 documents, 171 tokens, 0.89 bytes per token, 1.462 tokens per character, "
        "10 rows of 15",
        "  11 tokens dropped: document tails shorter than a row",
        "en: 30 documents, 420 tokens, 0.86 bytes per token, 1.167 tokens per character, "
        "26 rows of 15",
        "  4 tokens dropped: document tails shorter than a row",
        "held-out zh: 1 documents, 11 tokens, 0.82 bytes per token, 3.667 tokens per character",
        "at ALMR 0.25: 8 steps of 4 rows without repeating a row, 17 within data.max_epochs=2",
        "  10 steps: 1.00 epochs of zh",
        "  10 steps: 1.15 epochs of en",
        "held-out evaluation: 2 times 1 document per corpus, 30 tokens, 5.0% of the run's 600 "
        "tokens; 4 more would exceed 5%",
    ]


def test_cost_of_evaluation_has_a_duration_and_a_warning(config_path, tmp_path, capsys, caplog):
    (tmp_path / "run").mkdir()
    line = json.dumps({"step": 4, "perf/evaluation_seconds": 20.0})
    (tmp_path / "run/metrics.jsonl").write_text(f"{line}\n")
    main([config_path, "--output", str(tmp_path / "run"), "--evaluation.documents", "9"])
    assert capsys.readouterr().out.splitlines()[-1] == (
        "held-out evaluation: 6 times up to 9 documents per corpus, 720 tokens, 120.0% of the "
        "run's 600 tokens, about 2m00s"
    )
    assert "held-out evaluation takes 120% of the run's tokens" in caplog.text


def test_overrides_apply_and_too_many_epochs_are_a_warning(config_path, capsys, caplog):
    main([config_path, "--num-steps", "20", "--workers", "2", "--data.almr", "0", "1.0", "5", "0"])
    assert "  20 steps: 2.00 epochs of zh\n" in capsys.readouterr().out
    warning = "20 steps: 2.31 epochs of en, above data.max_epochs=2; train rejects this run"
    assert warning in caplog.messages


def test_inspect_shows_what_the_model_sees(config_path, capsys):
    """The batch's tokens, segments and mask can be recovered from the printed rows."""
    config = load_config(config_path)
    tokenizer = load_tokenizer(config.data.tokenizer)
    main([config_path, "--inspect", "12"])
    first = capsys.readouterr().out
    main([config_path, "--inspect", "12"])
    assert capsys.readouterr().out == first
    shown = re.split(r"\nrow \d+ of the run: ", first)[1:]
    prepared = prepare(config.data)
    rows = {name: manifest.rows for name, manifest in prepared.rows.items()}
    mixture = build_mixture(config.data, rows, seed=config.seed, global_batch_size=4)
    corpora = [TokenRows(prepared.folder(corpus.name)) for corpus in mixture.corpora]
    batch = read_batch(mixture, corpora, np.arange(12)[None])
    assert isinstance(batch, TokenBatch)
    for number, text in enumerate(shown):
        name = mixture.corpora[batch.corpus[0, number, 0]].name
        assert re.match(rf"row \d+ of {name}\n", text)
        spans = re.findall(r"segment (\d+): tokens (\d+)\.\.(\d+), positions 0\.\.(\d+)", text)
        segment_ids = np.zeros(15, int)
        for segment, start, end, last in (map(int, span) for span in spans):
            segment_ids[start : end + 1] = segment
            assert last == end - start
        assert np.array_equal(segment_ids, batch.segment_ids[0, number])
        not_learned = re.findall(r"x not learned: <\|begin_of_text\|> after token (\d+)", text)
        expected = np.flatnonzero(batch.loss_mask[0, number] == 0)
        assert [int(column) for column in not_learned] == expected.tolist()
        pieces = [part.strip() for part in re.findall(r"^  \| (.*)$", text, re.MULTILINE)]
        whole = tokenizer.decode(batch.tokens[0, number].tolist())
        assert "".join(pieces).replace("\ufffd", "").replace(" ", "") == whole.replace(
            "\ufffd", ""
        ).replace(" ", "")
        continued = batch.tokens[0, number, 0] != tokenizer.bos_id
        assert ("continues a document of the previous row" in text) == continued


def run(*arguments):
    command = [sys.executable, "-m", "llama_cpt.prepare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_user_error_is_a_one_line_message(config_path, tmp_path):
    (tmp_path / "en.jsonl").write_text('{"text": 1}')
    failed = run(config_path)
    assert (failed.returncode, failed.stdout) == (USER_ERROR, "")
    assert failed.stderr == (
        f"error: {tmp_path}/en.jsonl:1: text is not a string (it is of type int). Correct the "
        "source, or set data.bad_documents=skip to skip and count bad documents.\n"
    )


def test_help_is_printed_and_unknown_options_are_rejected(config_path, capsys):
    for arguments in (["--help"], []):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert "--inspect N" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean"):
        main([config_path, "--data.alrm", "0.5"])
    for value in ("0", "-1", "many"):
        with pytest.raises(SystemExit) as ended:
            main([config_path, "--workers", value])
        assert ended.value.code == USAGE


def test_skipped_documents_are_reported(config_path, tmp_path, capsys):
    with (tmp_path / "zh.jsonl").open("a") as file:
        file.write("\nno JSON\n{}\n{}")
    main([config_path, "--data.bad-documents", "skip"])
    assert "  3 documents skipped: 2 no field 'text', 1 not JSON\n" in capsys.readouterr().out


def test_report_and_inspected_rows_of_chats(config_path, tmp_path, capsys):
    """The report has formats, learned and dropped tokens; printed rows mark the learned lines."""
    turns = [("user", "h"), ("assistant", "hello"), ("user", "more"), ("assistant", "no\nmore")]
    messages = [{"role": role, "content": text} for role, text in turns]
    chats = [{"messages": messages}, {"prompt": "x" * 99, "completion": "y"}, {"prompt": "x"}]
    (tmp_path / "zh.jsonl").write_text("\n".join(map(json.dumps, chats)))
    (tmp_path / "en.jsonl").write_text(json.dumps([{"instruction": "a", "output": "b"}] * 3))
    (tmp_path / "en.jsonl").rename(tmp_path / "en.json")
    text = Path(config_path).read_text().replace("en.jsonl", "en.json").replace("=15", "=64")
    text = text.replace(
        "almr=0.25", "almr=0.5, chat=ChatConfig(max_left_out=0.7), bad_documents='skip'"
    )
    Path(config_path).write_text(text)
    main([config_path, "--inspect", "1", "--data.almr", "1.0"])
    shown = capsys.readouterr().out
    assert shown.startswith(
        "zh: 2 conversations, 188 tokens, 0.62 bytes per token, 1.607 tokens per character, "
        "1 rows of 64\n"
        "  format: messages (1), prompt-completion (1)\n"
        "  14 tokens with a loss per epoch, 1.6% of the rows is padding\n"
        "  1 dropped, longer than a row\n"
        "  124 tokens dropped in total\n"
        "  1 conversations skipped: 1 of no known chat format\n"
        "en: 3 conversations, 78 tokens"
    )
    row = shown.split("row 0 of the run: row 0 of zh\n")[1].splitlines()
    assert row[0] == "  --- segment 1: tokens 0..62, positions 0..62"
    assert [line for line in row if line.startswith("  >")] == [
        "  > hello<|eot_id|>",
        "  > no",
        "  > more<|eot_id|>",
    ]
    assert row[-1] == "  --- 1 positions of padding"
