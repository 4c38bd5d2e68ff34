"""Tests that ``benchmarks.equivalence`` finds small differences and applies renames."""

import json
import shutil

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.equivalence import compare, main
from benchmarks.equivalence_runs import RUNS
from benchmarks.renames import Renames, read_renames

TABLE = """kind,old,new
metric,mixture/NAME/passes,mixture/NAME/epochs
metric,perf/seconds,time/seconds
field,chat.learn,chat.loss_on
array,trained/query,model/q_proj
column,almr,ratio
file,prepared,rows
"""


def write_records(path, rows):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        writer.write(np.asarray(row, "<u4").tobytes())
    writer.close()


def write_output(output, *, new):
    """Write a complete output folder with old or new names."""
    results = output / "results"
    rows = results / ("rows" if new else "prepared")
    rows.mkdir(parents=True)
    write_records(rows / "rows-0.array_record", [[1, 2, 3], [4, 5, 6]])
    passes, seconds = ("epochs", "time/seconds") if new else ("passes", "perf/seconds")
    clock = {f"{seconds}/step": 0.1 + new}
    lines = [{"step": n, "train/loss": 0.1 * n, f"mixture/zh/{passes}": n} | clock for n in (1, 2)]
    (results / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    config = {"data": {"chat": {"loss_on" if new else "learn": "all"}}, "output": str(results)}
    (results / "config.json").write_text(json.dumps(config))
    (results / "results.csv").write_text(f"{'ratio' if new else 'almr'},loss\n0.25,1.5\n")
    (results / "card.md").write_text(f"written by the {'new' if new else 'old'} tree")
    save_file({"norm": np.ones(3, np.float32)}, results / "model.safetensors")
    weights = {"query": np.arange(4, dtype=np.float32)}
    tree = {"model": {"q_proj": weights["query"]}} if new else {"trained": weights}
    ocp.PyTreeCheckpointer().save(results / "checkpoints" / "6", tree)
    about = {"tree": "/tree", "results": str(results)}
    (output / "about.json").write_text(json.dumps(about))
    (output / "renames.csv").write_text(TABLE if new else "kind,old,new\n")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    write_output(folder / "old", new=False)
    write_output(folder / "new", new=True)
    return folder


@pytest.fixture
def outputs(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path / "old", tmp_path / "new"


def test_compare_reports_equal_outputs_across_renames(outputs, capsys):
    assert main(["compare", *map(str, outputs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "6 artifacts, 0 differ"
    # Step, loss and passes of two lines; the clock is exempt under its new name too.
    assert "equal    metrics.jsonl: 6 values" in lines
    # Without the table, renamed values are found under one name only.
    (outputs[1] / "renames.csv").write_text("kind,old,new\n")
    assert main(["compare", *map(str, outputs)]) == 65


def one_byte(path):
    tensors = load_file(path)
    tensors["norm"].view(np.uint8)[5] ^= 1
    save_file(tensors, path)


def one_weight(path):
    weights = np.arange(4, dtype=np.float32)
    weights[0] = -0.0
    shutil.rmtree(path)
    ocp.PyTreeCheckpointer().save(path, {"model": {"q_proj": weights}})


def one_token(path):
    path.unlink()
    write_records(path, [[1, 2, 3], [4, 7, 6]])


def in_text(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.safetensors", one_byte, "norm: byte 5 of 12 and 12: 0 != 1"),
        (
            "checkpoints/6",
            one_weight,
            "model/q_proj: 1 of 4 values, first at [0]: np.float32(0.0) != np.float32(-0.0)",
        ),
        ("rows/rows-0.array_record", one_token, "row 1: 1 of 3 values, first at [1]:"),
        ("metrics.jsonl", in_text("0.2", "0.20000000000000004"), "line 2: train/loss: 0.2 != 0.2"),
        ("metrics.jsonl", in_text('"step": 2', '"step": true'), "line 2: step: 2 != true"),
        ("config.json", in_text("all", "last"), 'data.chat.loss_on: "all" != "last"'),
        ("results.csv", in_text("1.5", "1.6"), 'row 1: loss: "1.5" != "1.6"'),
        ("model.safetensors", lambda path: path.unlink(), "only in "),
    ],
)
def test_compare_names_the_first_difference(outputs, capsys, file, change, message):
    change(outputs[1] / "results" / file)
    assert not compare(*outputs)
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("DIFFERS")]
    assert line.startswith(f"DIFFERS  {file}: ") and message in line


def test_compare_rejects_an_incomplete_output(outputs):
    (outputs[0] / "about.json").unlink()
    with pytest.raises(ValueError, match="about.json, so its runs are incomplete"):
        compare(*outputs)


def test_commands_use_the_names_of_the_tree(tmp_path):
    rows = [
        ("module", "llama_cpt.train", "llama_cpt.fit"),
        ("config_file", "configs/demo_base.py", "configs/demo.py:base"),
        ("field", "evaluation.documents", "evaluation.num_documents"),
    ]
    command = RUNS[0].command(tmp_path, Renames(rows))
    assert command[:3] == ["-m", "llama_cpt.fit", f"{tmp_path}/configs/demo.py:base"]
    assert command[command.index("--evaluation.num-documents") + 1] == "6"
    assert "--data.heldout.0.source" in command


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("file,a,c\nfile,b,c", "file c is listed twice"),
        ("thing,a,b", "kind 'thing' must be one of"),
        ("metric,mixture/NAME/passes,epochs", "the same number of NAME"),
        ("file,a", "must have the columns"),
    ],
)
def test_malformed_tables_are_rejected(tmp_path, line, message):
    (tmp_path / "renames.csv").write_text(f"kind,old,new\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_renames(tmp_path / "renames.csv")
