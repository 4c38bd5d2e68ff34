"""The evaluate command: incremental scores, resuming, and messages for user errors."""

import contextlib
from dataclasses import replace
import gzip
import itertools
import json
from pathlib import Path
import re
import shutil
from types import SimpleNamespace

from etils import epath
import numpy as np
import pytest

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.evaluate import main
from llama_cpt.evaluation.question_rows import make_rows
from llama_cpt.evaluation.scores import (
    ExampleScore,
    append_scores,
    read_scores,
    read_task,
    start_task,
    summary_of,
)
from llama_cpt.evaluation.tasks.scoring import score_eq_bench
from llama_cpt.evaluation.written_answers import make_answer_spec
from llama_cpt.generation.sampling import Sampling
from llama_cpt.parallel.mesh import BATCH_AXES
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.output_folder import file_lock
from tests.evaluation.benchmark_files import save_model, write_benchmarks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")

from llama_cpt.evaluation import (  # noqa: E402
    benchmarks,
    bits_per_byte,
    questions,
    written_answers,
)
from llama_cpt.evaluation import harness as harness_model
from llama_cpt.evaluation.benchmarks import load_benchmark  # noqa: E402
from llama_cpt.evaluation.tasks import local_files  # noqa: E402
from llama_cpt.evaluation.tasks.local_files import (  # noqa: E402
    eq_bench,
    humaneval,
    mmlu,
    xcopa_zh,
)


class Guesser:
    """A model that prefers the first option; request ``most`` raises KeyboardInterrupt."""

    def __init__(self, most=10**9):
        self.most, self.asked, self.cut = most, 0, set()

    def answers(self, kind, requests):
        for number, instance in enumerate(requests):
            if self.asked == self.most:
                raise KeyboardInterrupt
            self.asked += 1
            yield number, (-1.0 - instance.idx, False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=128)


def asked_of(guesser, data, folder, **settings):
    benchmark = load_benchmark("cmmlu", data, 0)
    found = questions.make_questions(benchmark, chat=None, limit=None)
    questions.answer_questions(found, guesser, folder, settings)
    return read_scores(str(folder))["cmmlu"]


def test_killed_evaluation_resumes(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        asked_of(Guesser(most=9), data, tmp_path / "a")
    file = tmp_path / "a" / "cmmlu.jsonl"
    assert file.read_text().count("\n") == 2
    with open(file, "a") as out:
        out.write('{"task": "cmmlu", "gro')
    second = Guesser()
    scores = asked_of(second, data, tmp_path / "a")
    assert second.asked == 6 * 4 - 2 * 4
    assert len({score.key for score in scores}) == len(file.read_text().splitlines()) == 6
    whole = asked_of(Guesser(), data, tmp_path / "b")
    assert sorted(scores, key=str) == sorted(whole, key=str)
    assert [score.score for score in whole if score.group == "arts"] == [1.0, 0.0, 0.0]


def test_evaluation_rejects_scores_of_another_model(data, tmp_path):
    asked_of(Guesser(), data, tmp_path, model="a")
    with pytest.raises(UserError, match="model was 'a', is 'b'.*another output"):
        asked_of(Guesser(), data, tmp_path, model="b")


def test_higher_limit_keeps_existing_scores(data, tmp_path):
    for limit, asked in ((1, 1 * 4), (3, 2 * 4), (9, 3 * 4)):
        guesser, benchmark = Guesser(), load_benchmark("cmmlu", data, 0)
        questions.answer_questions(
            questions.make_questions(benchmark, chat=None, limit=limit), guesser, tmp_path, {}
        )
        assert guesser.asked == asked


TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: a
repeats: {repeats}
metric_list:
  - {{metric: acc, aggregation: {aggregation}, higher_is_better: {better}}}
"""


@pytest.mark.parametrize(
    ("better", "aggregation", "repeats", "message"),
    [
        (True, "mean", 1, ""),
        (False, "mean", 1, ""),
        (True, "median", 1, "no metric that is a mean"),
        (True, "mean", 3, "sets repeats=3"),
    ],
)
def test_task_file_sets_direction_and_must_have_a_mean(
    better, aggregation, repeats, message, tmp_path
):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": "one"}\n{"q": "two"}\n')
    place = tmp_path / "mine.yaml"
    place.write_text(
        TASK.format(file=file, repeats=repeats, aggregation=aggregation, better=better)
    )
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        found = questions.make_questions(
            load_benchmark(str(place), "", None), chat=None, limit=None
        )
        questions.answer_questions(found, Guesser(), tmp_path / "out", {})
        (scores,) = read_scores(str(tmp_path / "out")).values()
        assert [score.score for score in scores] == [1.0, 1.0]
        assert [score.less_is_better for score in scores] == [not better] * 2


def test_limit_is_spread_over_the_parts_and_a_higher_limit_removes_nothing():
    sizes = [3, 1, 5]
    found = [questions.spread_limit(sizes, limit) for limit in range(1, 12)]
    assert [sum(quotas) for quotas in found] == [*range(1, 10), 9, 9]
    for quotas, more in itertools.pairwise(found):
        assert all(few <= many for few, many in zip(quotas, more, strict=True))
    assert found[2] == [1, 1, 1] and found[6] == [3, 1, 3] and found[-1] == sizes
    assert questions.spread_limit(sizes, None) == sizes


def test_published_score_leaves_out_answers_that_do_not_parse():
    def scores(read):
        return [
            ExampleScore("e", "", str(n), "eqbench", 60.0 * r, detail={"metrics": {"parseable": r}})
            for n, r in enumerate(read)
        ]

    assert summary_of(scores([1.0] * 9 + [0.0]))["published_score"] == 60
    assert summary_of(scores([1.0] * 8 + [0.0] * 2))["published_score"] is None


def test_generation_options_are_read_as_in_the_harness():
    order = make_answer_spec({"until": "x", "max_new_tokens": 9, "temperature": 0.5}, 64)
    assert (order.stops, order.max_new_tokens, order.sampling.temperature) == (("x",), 9, 0.5)
    assert make_answer_spec({"temperature": 0.0}, 512).sampling == Sampling()
    assert make_answer_spec({"temperature": 0.5, "do_sample": False}, 512).sampling == Sampling()
    assert make_answer_spec({"max_gen_toks": 1024}, 512).max_new_tokens == 256


def test_batches_of_long_prompts_have_few_rows(monkeypatch):
    batches = []

    def answer(decoder, tokenizer, mesh, prompts, specs, stop_ids, rows):
        batches.append((len(prompts[0]), len(prompts), rows))
        return ["" for _ in prompts]

    monkeypatch.setattr(written_answers, "_batch_answers", answer)
    mesh = SimpleNamespace(shape=dict.fromkeys(BATCH_AXES, 1))
    lengths = [8192] * 2 + [4096] * 5 + [1024] * 17 + [100] * 3
    prompts = [np.zeros(length, np.int32) for length in lengths]
    specs = [make_answer_spec({}, 1 << 14)] * len(prompts)
    found = written_answers.written_answers(None, None, mesh, prompts, specs, ())  # pyright: ignore[reportArgumentType]
    assert sorted(number for number, _ in found) == list(range(len(prompts)))
    assert batches == [
        *[(8192, 1, 1)] * 2,
        *[(4096, 4, 4), (4096, 1, 4)],
        *[(1024, 16, 16), (1024, 1, 16)],
        (100, 3, 4),
    ]


def test_option_longer_than_the_context_is_rejected():
    with pytest.raises(UserError, match="option of 9 tokens"):
        make_rows([(np.arange(3, dtype=np.int32), np.arange(9, dtype=np.int32))], 8)


def test_command_scores_text_and_questions_once(model, data, tmp_path, monkeypatch, capsys):
    for module in (harness_model, bits_per_byte):
        monkeypatch.setattr(module, "BATCH_TOKENS", 128)
    lines = [{"text": "猫坐在垫子上", "source": "a"}, {"text": "The cat", "source": "b"}]
    text = tmp_path / "text.jsonl.gz"
    text.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    (tmp_path / "names.txt").write_text("b  # no translation\n")
    output = str(tmp_path / "out")
    command = [model, "--tasks", "bpb,cmmlu", "--data", data, "--output", output, "--shots", "0"]
    command += ["--heldout", f"both={text}", "--no-counterpart", str(tmp_path / "names.txt")]
    assert main(command) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.jsonl")}
    assert main(command) == 0
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.jsonl")}
    scores = read_scores(f"{output}/tiny")
    assert {score.id: score.bytes for score in scores["bpb"]} == {
        "text.jsonl.gz:1": 18,
        "text.jsonl.gz:2": 7,
    }
    assert [score.detail["source"] for score in scores["bpb_no_counterpart"]] == ["b"]
    summary = json.loads((tmp_path / "out/tiny/summary.json").read_text())["tasks"]
    nats = sum(score.nats or 0.0 for score in scores["bpb"])
    assert summary["bpb"]["groups"]["both"] == pytest.approx(nats / 25 / 0.6931471805599453)
    assert summary["bpb"]["tokens_per_character"]["both"] > 0.5
    assert summary["cmmlu"]["examples"] == 6
    assert summary["bpb"]["window"] == 128
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    table = {line[0]: line[1:3] for line in lines}
    assert table["bpb: both"] == ["tiny", "2"] and table["bpb_no_counterpart: both"][1] == "1"
    assert table["cmmlu (chance 25)"] == ["tiny", "6"]


def test_command_rejects_mistakes_with_a_remedy(model, data, tmp_path, monkeypatch):
    # The real task manager takes seconds to index the tasks of the harness.
    harness = SimpleNamespace(all_tasks=["hellaswag"])
    monkeypatch.setattr(benchmarks, "_manager", lambda: harness)

    def fails(*more, tasks="cmmlu", folder=data, match):
        command = [model, *more, "--output", str(tmp_path), "--tasks", tasks]
        command += ["--data", str(folder)]
        with pytest.raises(UserError, match=match):
            main(command)

    fails(tasks="cmlu", match="unknown task 'cmlu'; did you mean 'cmmlu'")
    fails(folder=tmp_path / "nowhere", match="nowhere/cmmlu/test has no .*csv; set --data")
    fails(tasks="eq_bench", match="eq_bench_v2_questions_171.json .or .gz. does not exist")
    fails(tasks="humaneval", match="--run-generated-code")
    fails(tasks="bpb", match="--heldout NAME=GLOB")
    fails("--chat-template", match="no chat template")
    fails(model, match="two folders are named tiny: set another name with NAME=")
    file = tmp_path / "changed/cmmlu/test/arts.csv"
    for split in ("dev", "test"):
        (tmp_path / "changed/cmmlu" / split).mkdir(parents=True)
        (tmp_path / "changed/cmmlu" / split / "arts.csv").write_text(",Question,A\n0,a,b\n")
    fails(folder=tmp_path / "changed", match=f"{file.name}: question 1 has no 'B' .it has: ")


@pytest.mark.parametrize("name", ["..", "", "report.md", "conversations"])
def test_names_that_cannot_be_folders_are_rejected(name, tmp_path):
    with pytest.raises(UserError, match="cannot be a folder in --output|must be NAME=FOLDER"):
        main([f"{name}=folder", "--tasks", "bpb", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_folder_of_scores_has_one_writer(model, data, tmp_path):
    place = tmp_path / "tiny"
    place.mkdir()
    with file_lock(epath.Path(place / ".lock"), "", wait=False):
        with pytest.raises(UserError, match="another process scores there"):
            main([model, "--tasks", "xcopa_zh", "--data", data, "--output", str(tmp_path)])


def test_reader_ignores_an_incomplete_line(tmp_path):
    file = tmp_path / "bpb.jsonl"
    score = ExampleScore("bpb", "zh", "a:1", "acc", 1.0)
    append_scores(file, [score])
    with open(file, "a") as out:
        out.write('{"task": "bpb", "gro')
    before = file.read_bytes()
    assert read_task(file) == [score]
    assert file.read_bytes() == before
    append_scores(file, [replace(score, id="a:2")])
    assert [found.id for found in read_task(file)] == ["a:1", "a:2"]


def test_documents_have_unique_ids_and_a_fingerprint(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "valid.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n')
    corpus = CorpusConfig("en", f"{tmp_path}/*/valid.jsonl")
    texts = bits_per_byte.heldout_texts([corpus], None)
    assert len({text.id for text in texts}) == 4 and texts[0].id == "a/valid.jsonl:1"
    fingerprint = bits_per_byte.text_fingerprint(texts)
    few = bits_per_byte.heldout_texts([corpus], 1)
    assert len(few) == 1 and bits_per_byte.text_fingerprint(few) == fingerprint
    (tmp_path / "b/valid.jsonl").write_text('{"text": "One."}\n{"text": "2."}\n')
    changed = bits_per_byte.heldout_texts([corpus], 1)
    assert bits_per_byte.text_fingerprint(changed) != fingerprint


def test_no_counterpart_scores_follow_the_list_of_sources(tmp_path):
    scores = [
        ExampleScore("bpb", "en", f"a:{n}", "bits_per_byte", 1.0, 8.0, 8, detail={"source": source})
        for n, source in enumerate("ab")
    ]
    start_task(tmp_path, "bpb", {"model": "m"})
    append_scores(tmp_path / "bpb.jsonl", scores)
    for names in ("ab", "b"):
        bits_per_byte.write_no_counterpart(tmp_path, names, {"model": "m"})
        apart = read_scores(str(tmp_path))["bpb_no_counterpart"]
        assert [score.detail["source"] for score in apart] == list(names)


CMMLU = "cmmlu/test/arts.csv"
EQ = "eq_bench/eq_bench_v2_questions_171.json"
QUESTION = {"prompt": "?", "reference_answer_fullscale": {"emotion1": "joy"}}


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        (
            CMMLU,
            "Question,A,B,C,D,Answer\nq,a,b,c,d,E\n",
            "arts.csv: the answer to question 1 is 'E'",
        ),
        (
            CMMLU,
            f"Question,A,B,C,D,Answer\n{'q' * 140000},a,b,c,d,A\n",
            "arts.csv is not a CSV table",
        ),
        (f"{CMMLU}.gz", b"\x1f\x8b\x08\x00\0\0\0\0\0\xff\xff\xff\xff", "arts.csv.gz is damaged"),
        (
            CMMLU,
            'Question,A,B,C,D,Answer\nq,a,b,c,d,A\nq,"a,b,c,d,A\nq,a,b,c,d,A\n',
            "arts.csv is not a CSV table",
        ),
        (CMMLU, "Question,A,B,C,D,Answer\nq,a,b,c,d,A\nq,a,b,c,d\n", "row 2 has 5 columns, not 6"),
        ("xcopa/test.zh.jsonl", "[1]\n", "question 1 is .1., not an object"),
        ("xcopa/test.zh.jsonl", "\n" + "[" * 100_000, "zh.jsonl:2: nested too deeply"),
        (EQ, "[" * 100_000, "not JSON"),
        (
            "xcopa/test.zh.jsonl",
            '{"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": "1"}',
            "label of 0 or 1",
        ),
        (EQ, "{", "not JSON"),
        (EQ, "[1]", "not an object of questions"),
        (EQ, json.dumps({"1": QUESTION}), "question 1 has no 'emotion1_score'"),
    ],
)
def test_damaged_data_is_rejected_with_file_and_question(file, content, match, data, tmp_path):
    place = tmp_path / file
    place.parent.mkdir(parents=True)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    shutil.copytree(Path(data) / "cmmlu/dev", tmp_path / "cmmlu/dev")
    name = {"c": "cmmlu", "x": "xcopa_zh", "e": "eq_bench"}[file[0]]
    with pytest.raises(UserError, match=match):
        load_benchmark(name, str(tmp_path), 0)


def test_json_lines_of_benchmarks_can_contain_other_line_separators(tmp_path):
    row = {"premise": "a\u2028b\x85", "choice1": "c", "choice2": "d", "question": "cause"}
    (tmp_path / "xcopa").mkdir()
    lines = json.dumps(row | {"label": 0}, ensure_ascii=False) + "\r\n"
    (tmp_path / "xcopa/test.zh.jsonl").write_bytes(f"\ufeff{lines}\n{lines}".encode())
    assert xcopa_zh(str(tmp_path), "")["test"]["premise"] == ["a\u2028b\x85"] * 2


def test_mmlu_without_header_equals_mmlu_with_header(tmp_path):
    rows = ['"Why,\r\nso?",1,2,3,4', "q,a,b,c,d"]
    header = "question,choice0,choice1,choice2,choice3,answer\r\n"
    found = []
    for name, first, answers in (("with", header, "20"), ("without", "", "CA")):
        for split in ("dev", "test"):
            file = tmp_path / name / f"mmlu/{split}/anatomy_{split}.csv"
            file.parent.mkdir(parents=True)
            lines = (f"{row},{one}" for row, one in zip(rows, answers, strict=True))
            file.write_bytes((first + "\r\n".join(lines)).encode())
        found.append(mmlu(str(tmp_path / name), "anatomy")["test"].to_list())
    assert found[0] == found[1] and [row["answer"] for row in found[0]] == [2, 0]


def test_benchmark_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(local_files, "LARGEST_FILE", 1 << 20)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/train.jsonl.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(UserError, match=r"train.jsonl.gz has more than 1 MB of text"):
        local_files.gsm8k(str(tmp_path), "")


def test_real_benchmarks_load_and_score(shared_data):
    folder = str(shared_data / "eval")
    rows = eq_bench(folder, "")["test"]
    assert len(rows) == 171 and len(humaneval(folder, "")["test"]) == 164
    prompts = "\n".join(rows["prompt"])
    assert "Critique: <" not in prompts and "Revised" not in prompts
    reference = json.loads(rows[0]["reference"])
    names = [(reference[f"emotion{i}"], int(reference[f"emotion{i}_score"])) for i in range(1, 5)]
    exact = "\n".join(f"{name}: {score}" for name, score in names)
    assert score_eq_bench(rows[0], [exact]) == {"eqbench": 100.0, "parseable": 1.0}
    assert score_eq_bench(rows[0], [exact.replace(names[0][0], "Other")])["parseable"] == 0.0
    # A difference of 10 counts as 10, a difference of 4 as 6.5 / 2.
    reference |= {f"emotion{i}_score": 0 for i in range(1, 5)}
    rated = "\n".join(f"{name}: {s}" for (name, _), s in zip(names, (10, 4, 0, 0), strict=True))
    found = score_eq_bench({"reference": json.dumps(reference)}, [rated])["eqbench"]
    assert found == pytest.approx(10 * (10 - 0.7477 * 13.25))


def test_every_local_benchmark_loads(shared_data):
    found = {
        name: len(load_benchmark(name, str(shared_data / "eval"), None).parts)
        for name in ("gsm8k", "mgsm_zh", "humaneval", "eq_bench", "xcopa_zh")
    }
    assert set(found.values()) == {1}
