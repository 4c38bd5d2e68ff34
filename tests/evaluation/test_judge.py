"""Judged comparisons: blind pairs, both orders, resuming, and failures of the endpoint."""

import contextlib
import json
from typing import Any

import pytest

from llama_cpt.evaluate import main
from llama_cpt.evaluation.judge import judges as judging_endpoint
from llama_cpt.evaluation.judge.answers import read_prompts
from llama_cpt.evaluation.judge.judges import EndpointJudge
from llama_cpt.evaluation.judge.results import summary_lines
from llama_cpt.evaluation.judge.session import (
    Candidate,
    JudgeOptions,
    check_conversations,
    judge_conversations,
)
from llama_cpt.evaluation.judge.verdicts import MAX_INVALID_REPLIES
from llama_cpt.runtime.errors import UserError
from tests.evaluation.benchmark_files import save_tokenizer
from tests.evaluation.chat_endpoint import serving
from tests.weights.hf_models import save_llama

TINY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
KEY = "sk-a-secret-that-nobody-may-see"
PROMPTS = 12


@pytest.fixture
def endpoint(monkeypatch):
    """Function that starts an endpoint, which ends with the test."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with contextlib.ExitStack() as stack:
        yield lambda reply: stack.enter_context(serving(reply))


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(judging_endpoint, "FIRST_WAIT", 0.01)


def candidate(name, answers):
    """A candidate that answers a prompt with ``answers(text of its last turn)``."""

    def answer(prompts):
        return ((i, answers(prompt[-1].content)) for i, prompt in enumerate(prompts))

    return Candidate(name, f"{name}'s weights", answer)


GOOD = candidate("tuned", lambda asked: f"good answer to {asked}")
BAD = candidate("base", lambda asked: f"bad answer to {asked}")


def options_of(tmp_path, judge):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(PROMPTS)))
    return JudgeOptions(str(file), judge, model="j")


def prefers(word):
    """A judge that prefers the answer that contains ``word``."""

    def reply(body, _):
        left, right = body["messages"][1]["content"].split("<answer B>")
        if (word in left) == (word in right):
            return "They are alike.\nVERDICT: TIE"
        return f"Reasons, verdict: a thing of taste.\nVERDICT: {'A' if word in left else 'B'}"

    return reply


def all_text(tmp_path):
    return "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())


def test_better_answers_win_in_both_orders(tmp_path, endpoint, capsys):
    server = endpoint(prefers("good"))
    found = judge_conversations((GOOD, BAD), tmp_path, options_of(tmp_path, server.url))
    assert (found.wins, found.losses, found.rate, found.unjudged) == (PROMPTS, 0, 1.0, 0)
    assert 0.5 < found.interval[0] < 1 == found.interval[1]
    assert found.shown_first == 0.5 and found.disagreements == 0
    assert "tuned is preferred to base" in summary_lines(found)[0]
    # The judge does not see the names, and the key is only in the header.
    assert not any("tuned" in text or "base" in text for text in server.asked)
    assert set(server.keys) == {f"Bearer {KEY}"}
    said = capsys.readouterr()
    assert KEY not in said.out + said.err + all_text(tmp_path)
    assert KEY not in repr(EndpointJudge(server.url, "j", 1.0))


def test_second_call_requests_only_missing_verdicts(tmp_path, endpoint):
    server = endpoint(prefers("good"))
    options = options_of(tmp_path, server.url)
    whole = judge_conversations((GOOD, BAD), tmp_path, options)
    kept = tmp_path / "conversations" / "judgments.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    # The command was killed while it wrote a line.
    kept.write_text("".join(lines[:5]) + lines[5][:20])
    unable = candidate("tuned", None), candidate("base", None)
    assert judge_conversations(unable, tmp_path, options) == whole
    assert len(server.asked) == 4 * PROMPTS - 5
    assert len(kept.read_text().splitlines()) == 2 * PROMPTS


def test_judge_that_follows_the_position_gives_ties(tmp_path, endpoint, capsys):
    server = endpoint(lambda body, number: "VERDICT: A")
    found = judge_conversations((GOOD, BAD), tmp_path, options_of(tmp_path, server.url))
    assert (found.rate, found.disagreements, found.shown_first) == (0.5, PROMPTS, 1.0)
    assert found.finding == "no significant difference"
    assert "favors the answer that is shown first" in capsys.readouterr().out


def test_equal_answers_are_ties_without_a_request(tmp_path, endpoint):
    server = endpoint(prefers("good"))
    alike = candidate("alike", lambda asked: BAD_WHERE_ODD(asked))
    found = judge_conversations((alike, BAD), tmp_path, options_of(tmp_path, server.url))
    assert (found.wins, found.losses, found.same) == (0, 0, PROMPTS // 2)
    assert found.rate == 0.5 and found.prompts == PROMPTS
    assert len(server.asked) == PROMPTS


def BAD_WHERE_ODD(asked):
    return f"bad answer to {asked}" if int(asked.split()[-1]) % 2 else f"another to {asked}"


def test_transient_errors_are_retried(tmp_path, endpoint):
    later = {1: (429, {"Retry-After": "0"}, b""), 2: (503, {}, b"busy"), 3: (200, {}, b"<html>")}
    server = endpoint(lambda body, n: later.get(n) or prefers("good")(body, n))
    found = judge_conversations((GOOD, BAD), tmp_path, options_of(tmp_path, server.url))
    assert (found.rate, found.without_verdict) == (1.0, 0)
    assert len(server.asked) == 2 * PROMPTS + 3


def test_verdicts_of_version_0_1_are_reused(tmp_path, endpoint):
    server = endpoint(prefers("good"))
    options = options_of(tmp_path, server.url)
    whole = judge_conversations((GOOD, BAD), tmp_path, options)
    folder, asked = tmp_path / "conversations", len(server.asked)
    verdicts = folder / "judgments.jsonl"
    content = verdicts.read_bytes()
    verdicts.rename(folder / "judgements.jsonl")
    assert judge_conversations((GOOD, BAD), tmp_path, options) == whole
    assert len(server.asked) == asked and verdicts.read_bytes() == content
    assert not (folder / "judgements.jsonl").exists()


def test_failing_endpoint_ends_the_command_and_keeps_verdicts(tmp_path, endpoint):
    server = endpoint(lambda body, n: "VERDICT: A" if n <= 5 else (500, {}, KEY.encode()))
    options = options_of(tmp_path, server.url)
    with pytest.raises(UserError, match=r"no reply after \d attempts \(HTTP 500\)") as caught:
        judge_conversations((GOOD, BAD), tmp_path, options)
    assert KEY not in str(caught.value)
    assert len(server.asked) <= 5 + judging_endpoint.ATTEMPTS * 4
    assert len((tmp_path / "conversations" / "judgments.jsonl").read_text().splitlines()) == 5
    server.reply = lambda body, n: "VERDICT: A"
    before = len(server.asked)
    assert judge_conversations((GOOD, BAD), tmp_path, options).prompts == PROMPTS
    assert len(server.asked) - before == 2 * PROMPTS - 5


def test_replies_without_a_verdict_are_counted(tmp_path, endpoint):
    def reply(body, number):
        return "I like both." if "question 3\n" in body["messages"][1]["content"] else "VERDICT: A"

    server = endpoint(reply)
    found = judge_conversations((GOOD, BAD), tmp_path, options_of(tmp_path, server.url))
    assert (found.prompts, found.unjudged, found.without_verdict) == (PROMPTS - 1, 1, 2)
    assert "1 prompts do not count" in summary_lines(found)[-1]
    # The next call repeats only the questions without a verdict.
    before, server.reply = len(server.asked), lambda body, number: "VERDICT: A"
    found = judge_conversations((GOOD, BAD), tmp_path, options_of(tmp_path, server.url))
    assert (found.prompts, found.without_verdict) == (PROMPTS, 0)
    assert len(server.asked) - before == 2


def test_questions_without_a_verdict_do_not_end_a_later_call(tmp_path, endpoint):
    server = endpoint(lambda body, n: prefers("good")(body, n).replace("VERDICT: B", "Who knows?"))
    options = options_of(tmp_path, server.url)
    found = judge_conversations((GOOD, BAD), tmp_path, options)
    assert found.without_verdict == PROMPTS > MAX_INVALID_REPLIES
    assert judge_conversations((GOOD, BAD), tmp_path, options) == found


def test_only_invalid_replies_end_the_command(tmp_path, endpoint):
    server = endpoint(lambda body, n: f"VERDICT: A or B, {KEY}")
    with pytest.raises(UserError, match="10 questions in a row without a verdict") as caught:
        judge_conversations((GOOD, BAD), tmp_path, options_of(tmp_path, server.url))
    assert len(server.asked) <= 3 * (10 + 4)
    assert KEY not in str(caught.value) + all_text(tmp_path)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("localhost:8000", "must be a URL"),
        ("https://me:secret@host/v1", "has a user, a password"),
        ("https://host/v1?key=secret", "set the key in the environment"),
    ],
)
def test_invalid_urls_are_rejected(tmp_path, judge, message):
    with pytest.raises(UserError, match=message) as caught:
        check_conversations(["a", "b"], options_of(tmp_path, judge))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_prompts": 0}, "--prompts=0 must be at least 1"),
        ({"max_answer_tokens": 0}, "--answer-tokens=0 must be at least 1"),
        ({"timeout_seconds": float("nan")}, "--judge-timeout=nan must be at least 0.001"),
        ({"timeout_seconds": float("inf")}, "--judge-timeout=inf must .* finite"),
    ],
)
def test_options_reject_limits_that_are_not_positive_and_finite(limit, message):
    with pytest.raises(UserError, match=message):
        JudgeOptions("prompts.jsonl", **limit)


def test_person_can_quit_and_resume(tmp_path, monkeypatch):
    options = options_of(tmp_path, "person")
    screen = _says(monkeypatch, ["good", "?", "good", "q"])
    found = judge_conversations((GOOD, BAD), tmp_path, options)
    assert (found.prompts, found.wins, found.unjudged) == (2, 2, PROMPTS - 2)
    _says(monkeypatch, ["good"] * (PROMPTS - 2))
    assert judge_conversations((GOOD, BAD), tmp_path, options).wins == PROMPTS
    shown = "\n".join(screen).split("tuned against base")[0]
    assert "good answer" in shown and "tuned" not in shown and "base" not in shown
    # The order depends on the hash of the pair.
    lines = (tmp_path / "conversations" / "judgments.jsonl").read_text().splitlines()
    assert {json.loads(line)["swapped"] for line in lines} == {True, False}


def _says(monkeypatch, words):
    """Simulate a person who types ``words``; ``good`` stands for the letter of the good answer."""
    screen, left = [], iter(words)
    monkeypatch.setattr(
        "builtins.print", lambda *text, **_: screen.append(" ".join(map(str, text)))
    )

    def answer(_):
        word = next(left)
        if word != "good":
            return word
        last = "\n".join(screen).split("--- answer a")[-1]
        return "a" if "good" in last.split("--- answer b")[0] else "b"

    monkeypatch.setattr("builtins.input", answer)
    return screen


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with two chat models and a base model."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "mute")):
        (folder / name).mkdir()
        size = save_tokenizer(folder / name, chat=name != "mute")
        save_llama(folder / name, seed=seed, vocab_size=size, **TINY)
    return folder


def test_command_generates_answers_once(tmp_path, endpoint, models):
    server = endpoint(lambda body, n: "VERDICT: A")
    file = tmp_path / "prompts.jsonl"
    asked = ["Who?", "猫?", "What " * 100]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    command = [str(models / "a"), str(models / "b"), "--output", str(tmp_path / "out")]
    command += ["--conversations", str(file), "--answer-tokens", "8"]
    command += ["--judge", server.url, "--judge-model", "j"]
    assert main(command) == 0
    found = json.loads((tmp_path / "out/conversations/win_rate.json").read_text())
    assert (found["models"], found["prompts"], found["rate"]) == (["a", "b"], 2, 0.5)
    answers = (tmp_path / "out/conversations/answers/a.jsonl").read_text().splitlines()
    by_prompt = {line["asked"]: line["answer"] for line in map(json.loads, answers)}
    # The long prompt leaves no room for an answer.
    assert by_prompt.pop(asked[2]) is None and all(by_prompt.values())
    assert any(by_prompt["Who?"] in question for question in server.asked)
    before = len(server.asked)
    assert main(command) == 0 and len(server.asked) == before
    with pytest.raises(UserError, match="mute cannot answer conversations"):
        main([str(models / "mute"), *command[1:]])
    with pytest.raises(UserError, match="compares two models, not 1; name two"):
        main(command[1:])


def test_prompts_are_read_from_all_formats(tmp_path):
    file = tmp_path / "prompts.json"
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = [{"role": role, "content": text} for role, text in turns]
    records = [
        {"messages": messages},
        {"messages": messages[:3]},
        {"instruction": "who", "input": "is it?"},
        {"prompt": "why?"},
        {"prompt": "how?", "chosen": "so", "rejected": "not so"},
    ]
    file.write_text(json.dumps(records))
    found = read_prompts(str(file), 10)
    assert [prompt[-1].content for prompt in found] == ["three", "who\nis it?", "why?", "how?"]
    assert len(found[0]) == 3
    file.write_text(json.dumps([{"prompt": "why?"}, {"text": "no"}]))
    with pytest.raises(UserError, match=r"prompts.json:2: no prompt: of no known chat format"):
        read_prompts(str(file), 10)
