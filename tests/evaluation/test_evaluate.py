"""The command: scores as they come, taken up again, and the user's mistakes."""

import gzip
import json
from types import SimpleNamespace

import pytest

from llama_cpt.errors import UserError
from llama_cpt.evaluate import main
from llama_cpt.evaluation.scores import read_scores
from llama_cpt.evaluation.tasks.eq_bench import closeness
from tests.evaluation.benchmark_files import save_model, write_benchmarks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")

from llama_cpt.evaluation import benchmarks, harness_model, heldout_scores, questions  # noqa: E402
from llama_cpt.evaluation.benchmarks import load_benchmark  # noqa: E402
from llama_cpt.evaluation.tasks.local_files import eq_bench, humaneval  # noqa: E402


class Guesser:
    """Takes the first option of every question, counts requests, and dies after ``most``."""

    def __init__(self, most=10**9):
        self.most, self.asked, self.cut = most, 0, 0

    def answers(self, kind, instances):
        for number, instance in enumerate(instances):
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
    found = questions.questions_of(benchmark, chat=None, limit=None)
    questions.ask(found, guesser, folder, settings)
    return read_scores(str(folder))["cmmlu"]


def test_a_killed_evaluation_goes_on_where_it_was(data, tmp_path):
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


def test_scores_of_another_model_are_not_taken_for_this_one_s(data, tmp_path):
    asked_of(Guesser(), data, tmp_path, model="a")
    with pytest.raises(UserError, match="model was 'a', is 'b'.*--output"):
        asked_of(Guesser(), data, tmp_path, model="b")


def test_the_command_scores_text_and_questions_once(model, data, tmp_path, monkeypatch, capsys):
    for module in (harness_model, heldout_scores):
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
    nats = sum(score.nats for score in scores["bpb"])
    assert summary["bpb"]["groups"]["both"] == pytest.approx(nats / 25 / 0.6931471805599453)
    assert summary["bpb"]["tokens_per_character"]["both"] > 0.5
    assert summary["cmmlu"]["examples"] == 6
    assert "cmmlu" in capsys.readouterr().out


def test_mistakes_are_told_in_a_sentence(model, data, tmp_path, monkeypatch):
    # The harness's own takes seconds to look through its tasks.
    harness = SimpleNamespace(all_tasks=["hellaswag"])
    monkeypatch.setattr(benchmarks, "_manager", lambda: harness)

    def told(*more, tasks="cmmlu", folder=data, match):
        command = [model, *more, "--output", str(tmp_path), "--tasks", tasks]
        command += ["--data", str(folder)]
        with pytest.raises(UserError, match=match):
            main(command)

    told(tasks="cmlu", match="unknown task 'cmlu'; did you mean 'cmmlu'")
    told(folder=tmp_path / "nowhere", match="nowhere/cmmlu/test holds no .*csv: give --data")
    told(tasks="eq_bench", match="eq_bench_v2_questions_171.json .or .gz. is not there")
    told(tasks="humaneval", match="--run-generated-code")
    told(tasks="bpb", match="--heldout NAME=GLOB")
    told("--chat-template", match="no chat template")
    told(model, match="two models are called tiny: tell them apart as NAME=")
    file = tmp_path / "changed/cmmlu/test/arts.csv"
    for split in ("dev", "test"):
        (tmp_path / "changed/cmmlu" / split).mkdir(parents=True)
        (tmp_path / "changed/cmmlu" / split / "arts.csv").write_text(",Question,A\n0,a,b\n")
    told(folder=tmp_path / "changed", match=f"{file.name}: question 1 has no 'B' .it has: ")


def test_real_benchmarks_are_read(shared_data):
    folder = str(shared_data / "eval")
    rows = eq_bench(folder, "")["test"]
    assert len(rows) == 171 and len(humaneval(folder, "")["test"]) == 164
    assert all(
        "Critique: <" not in row["prompt"] and "Revised" not in row["prompt"] for row in rows
    )
    reference = json.loads(rows[0]["reference"])
    names = [(reference[f"emotion{i}"], int(reference[f"emotion{i}_score"])) for i in range(1, 5)]
    exact = "\n".join(f"{name}: {score}" for name, score in names)
    assert closeness(rows[0], [exact]) == {"eqbench": 100.0, "parseable": 1.0}
    assert closeness(rows[0], [exact.replace(names[0][0], "Other")])["parseable"] == 0.0
    # The rule: a difference of 10 counts as 10, one of 4 as 6.5 / 2.
    reference |= {f"emotion{i}_score": 0 for i in range(1, 5)}
    rated = "\n".join(f"{name}: {s}" for (name, _), s in zip(names, (10, 4, 0, 0), strict=True))
    found = closeness({"reference": json.dumps(reference)}, [rated])["eqbench"]
    assert found == pytest.approx(10 * (10 - 0.7477 * 13.25))


def test_every_local_benchmark_loads(shared_data):
    found = {
        name: len(load_benchmark(name, str(shared_data / "eval"), None).parts)
        for name in ("gsm8k", "mgsm_zh", "humaneval", "eq_bench", "xcopa_zh")
    }
    assert set(found.values()) == {1}
