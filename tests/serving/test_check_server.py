"""Tests of the comparison with a running server: equal servers, planted faults, hostile replies."""

from collections.abc import Iterator
from dataclasses import replace
import json
import time

import jax
import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig
from llama_cpt.convert import main
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.generation.decoder import make_decoder
from llama_cpt.generation.generate import generate
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime import http_client
from llama_cpt.runtime.errors import CHECK_FAILED, USAGE, USER_ERROR, UserError
from llama_cpt.serving import server as client
from llama_cpt.serving.answers import AnswerComparison, Difference, ServedAnswer, follow_text
from llama_cpt.serving.check import MAX_TOKENS, check_server
from llama_cpt.serving.findings import Finding, answer_findings
from llama_cpt.serving.prompts import QUESTIONS, cases, our_ids
from llama_cpt.weights.hf_export import ExportOptions, export_hf
from llama_cpt.weights.hf_names import parameters_by_path, with_parameters
from llama_cpt.weights.prompt_format import prompt_format
from llama_cpt.weights.source import HfFolder
from tests.byte_tokenizer import write_byte_tokenizer
from tests.serving.model_server import Behavior, Model, running
from tests.tiny_run import tiny_model

KEY = "sk-a-secret-that-nobody-may-see"
END = ord("U")
"""A token that ends answers, according to ``generation_config.json``."""
TWIN = 255
"""A byte that UTF-8 does not contain. Its parameters equal those of the byte "3"."""
FIRST, OTHER = QUESTIONS[0], QUESTIONS[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    """A tiny model that writes ASCII text, and that ends some of its answers."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = load_tokenizer(str(write_byte_tokenizer(folder)))
    config = tiny_model(tokenizer.vocab_size, num_layers=2, context_length=512)
    llama = Llama(replace(config, tied_embeddings=False), jax.random.key(2))
    arrays = {name: np.asarray(one.get_value()) for name, one in parameters_by_path(llama).items()}
    for name in arrays:
        # With larger weights, the answers differ and their margins are larger than a tie.
        arrays[name] = arrays[name] * (1.0 if "norm" in name else 4.0)
    head = np.zeros_like(arrays["lm_head"])
    head[32:127] = arrays["lm_head"][32:127] * 25.0
    head[TWIN] = head[ord("3")]
    arrays["lm_head"] = head
    arrays["embedding"][TWIN] = arrays["embedding"][ord("3")]
    options = ExportOptions("float32", token_ids={"eos_token_id": [tokenizer.eos_id, END]})
    export = folder / "export"
    export_hf(lambda path: jax.numpy.asarray(arrays[path]), llama.config, str(export), options)
    write_byte_tokenizer(export)
    generation = {"eos_token_id": [tokenizer.eos_id, END], "temperature": 0.5}
    (export / "generation_config.json").write_text(json.dumps(generation))
    prompts = prompt_format(HfFolder(str(export)))
    asked = [our_ids(prompts, case.prompt) for case in cases(prompts) if case.kind == "question"]
    llama = with_parameters(llama, {name: jax.numpy.asarray(one) for name, one in arrays.items()})
    # The comparison uses the same mesh, so that it shares the compiled programs.
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    stops = {"max_new_tokens": MAX_TOKENS, "stop_ids": prompts.stop_ids}
    answers = generate(make_decoder(llama, mesh), asked, mesh=mesh, **stops)
    assert {len(one) < MAX_TOKENS for one in answers} == {True, False}, "some answers end"
    assert answers[0][0] == ord("3"), "the first token has a twin"
    known = {tuple(prompt): answer for prompt, answer in zip(asked, answers, strict=True)}
    return Model(str(export), prompts, known, logprobs(llama, known))


def logprobs(
    llama: Llama, answers: dict[tuple[int, ...], list[int]]
) -> dict[tuple[int, ...], list]:
    """Return the log-probability of each token of each answer, by the training forward pass."""
    found = {}
    rows = np.zeros((len(answers), 128), np.int32)
    for row, (prompt, answer) in zip(rows, answers.items(), strict=True):
        row[: len(prompt) + len(answer)] = [*prompt, *answer]
    positions = np.broadcast_to(np.arange(128, dtype=np.int32), rows.shape)
    inputs = jax.tree.map(jax.numpy.asarray, (rows, positions, np.ones_like(rows)))
    logits = llama(*inputs)
    logp = np.asarray(jax.nn.log_softmax(logits))
    for row, (prompt, answer) in zip(logp, answers.items(), strict=True):
        at = len(prompt) - 1 + np.arange(len(answer))
        found[prompt] = row[at, answer].tolist()
    return found


def findings(model: Model, behavior: Behavior) -> dict[str, Finding]:
    """Return the findings on a server by check, without the rows of single answers."""
    with running(model, behavior) as server:
        return {one.check: one for one in check_server(model.folder, server.url) if one.is_check}


def differing(found: dict[str, Finding]) -> set[str]:
    return {check for check, one in found.items() if one.result == "differs"}


def test_equal_server_passes(model, capsys):
    with running(model, Behavior()) as server:
        assert main(["check-server", model.folder, f"{server.url}/v1/"]) == 0
    printed = capsys.readouterr().out
    assert "18 of 18 prompts equal" in printed and "14 of 14 answers equal" in printed
    assert "the server computes in float32" in printed
    assert "verdict: no difference" in printed and "not compared: sampling defaults" in printed


@pytest.mark.parametrize("dialect", ["llama.cpp", "plain"])
def test_servers_without_the_ids_of_vllm_are_compared(model, dialect):
    found = findings(model, Behavior(dialect))
    assert found["greedy ids"].result == "equal" and found["end of answers"].result == "equal"
    # A server that renders conversations to text cannot distinguish control tokens from text.
    assert differing(found) == ({"typed control tokens"} if dialect == "llama.cpp" else set())
    reported = {"llama.cpp": "equal", "plain": "not compared"}[dialect]
    assert found["BOS, texts"].result == found["BOS, conversations"].result == reported
    assert found["data type"].result == "not compared"


def bos_twice(model: Model, messages: list[Message]) -> list[int]:
    ids = model.chat_ids(messages)
    # The answers to questions are those to the correct prompt.
    return ids if messages[-1].content in QUESTIONS else [ids[0], *ids]


def injected(model: Model, messages: list[Message]) -> list[int]:
    ids, name = model.chat_ids(messages), model.prompts.tokenizer.special_tokens["<|eot_id|>"]
    text = model.prompts.tokenizer.encode("<|eot_id|>")
    at = [n for n in range(len(ids)) if ids[n : n + len(text)] == text]
    return [*ids[: at[0]], name, *ids[at[0] + len(text) :]] if at else ids


def replaced(position: int, token: int):
    """Return a function that replaces a token of the first answer."""

    def answer(question: str, ids: list[int]) -> list[int]:
        if question == FIRST and len(ids) > 1:
            return [*ids[:position], token, *ids[position + 1 :]]
        return ids

    return answer


def continued(question: str, ids: list[int]) -> list[int]:
    """Return the answer with more text after the token that ends it."""
    return [*ids, END, ord("a")] if 1 < len(ids) < MAX_TOKENS - 2 else ids


@pytest.mark.parametrize(
    ("behavior", "check", "detail"),
    [
        (
            Behavior(text_ids=lambda ids: ids[1:]),
            "BOS, texts",
            "begins with 0 BOS",
        ),
        (
            Behavior(chat_ids=bos_twice),
            "BOS, conversations",
            "begins with 2 BOS",
        ),
        (
            Behavior(chat_ids=injected),
            "typed control tokens",
            "the server treats <|eot_id|> as a control token",
        ),
        (Behavior(answer=replaced(5, ord("a"))), "greedy ids", "13 of 14 answers equal"),
        (
            Behavior("plain", answer=replaced(5, ord("a"))),
            "greedy ids",
            "13 of 14 answers equal",
        ),
        (Behavior(answer=continued), "end of answers", "the server continues after 85 'U'"),
        (Behavior(finish={FIRST: "abort"}), "end of answers", "finish_reason is 'abort'"),
        (Behavior(finish={FIRST: "stop"}), "end of answers", "the server ends too early"),
        (
            Behavior(properties={"default_generation_settings": {"params": {"temperature": 0.8}}}),
            "sampling defaults",
            "temperature=0.5, the server uses temperature=0.8",
        ),
    ],
    ids=[
        "bos",
        "bos-twice",
        "control",
        "sampled",
        "sampled-text",
        "late",
        "finish",
        "early",
        "sampling",
    ],
)
def test_planted_fault_is_the_only_difference(model, behavior, check, detail):
    found = findings(model, behavior)
    assert differing(found) == {check}
    assert detail in found[check].detail


def wrong_template(model: Model, messages: list[Message]) -> list[int]:
    return model.chat_ids([Message("system", "Be brief."), *messages])


def test_wrong_template_and_a_twin_of_a_token(model):
    behavior = Behavior(chat_ids=wrong_template, answer=replaced(0, TWIN))
    found = findings(model, behavior)
    assert "0 of 18 prompts equal" in found["prompt ids, conversations"].detail
    found = findings(model, Behavior(answer=replaced(0, TWIN)))
    assert found["greedy ids"].result == "tie" and not differing(found)


def removed(model: Model, messages: list[Message]) -> list[int]:
    text = messages[-1].content.replace("<|eot_id|>", "").replace("<|start_header_id|>", "")
    text = text.replace("<|end_header_id|>", "")
    return model.chat_ids([*messages[:-1], Message("user", text)])


def test_proxy_that_removes_control_tokens_is_safe(model):
    found = findings(model, Behavior(chat_ids=removed))
    assert not differing(found)
    assert "the server changes the text of 3 messages" in found["typed control tokens"].detail


@pytest.mark.parametrize(
    ("deviation", "detail"), [(0.01, "computes in a 16-bit type"), (0.5, "quantized or different")]
)
def test_log_probabilities_reveal_the_data_type(model, deviation, detail):
    assert detail in findings(model, Behavior(deviation=deviation))["data type"].detail


def test_sampling_defaults_of_llama_cpp_are_compared(model):
    params = {"temperature": 0.5000001, "top_k": 40}
    behavior = Behavior(properties={"default_generation_settings": {"params": params}})
    assert findings(model, behavior)["sampling defaults"].result == "equal"


def test_margins_decide_between_ties_and_differences(model):
    served = ServedAnswer(FIRST, [1], [2, 3], True, None, "length", None)

    def result(*margins: float) -> list[str]:
        differences = [Difference(n, 7, 2, margin) for n, margin in enumerate(margins)]
        compared = AnswerComparison(served, differences, [])
        rows = list(answer_findings([compared], model.prompts, 2))
        return [row.result for row in rows[:2]] + [rows[1].detail[-4:]]

    assert result(0.0009) == ["tie", "tie", "0009"]
    assert result(0.2, 0.0009)[:2] == ["near-tie", "near-tie"]
    # The first difference that is not a tie is shown.
    assert result(0.2, 0.3, 0.4) == ["differs", "differs", " 0.3"]


def test_text_is_followed_through_our_own_tokens(model):
    tokenizer = model.prompts.tokenizer
    ids = tokenizer.encode("a你b")
    assert follow_text(tokenizer, ids, "a你") == ids[:4]
    assert follow_text(tokenizer, ids, "a他们") == [ids[0], *tokenizer.encode("他们")]
    assert follow_text(tokenizer, ids, "") == []


def test_difference_exits_with_65_and_the_key_is_not_printed(model, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running(model, Behavior(finish={FIRST: KEY})) as server:
        assert main(["check-server", model.folder, server.url]) == CHECK_FAILED
        assert set(server.keys) == {f"Bearer {KEY}"}
    printed = capsys.readouterr()
    assert "differs from" in printed.err and "in: end of answers." in printed.err
    assert KEY not in printed.out + printed.err


def dripping() -> Iterator[bytes]:
    for _ in range(500):
        time.sleep(0.02)
        yield b" "


CHAT = "/v1/chat/completions"
WHOLE = json.dumps({"choices": [{"text": "你好"}]}, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("path", "reply", "message"),
    [
        ("/v1/models", b"garbage", "/v1/models: not JSON"),
        ("/v1/models", b"[1]", "must be a JSON object"),
        ("/v1/models", b'{"data": [{"name": "m"}]}', "'data' must be a list of models"),
        ("/v1/models", (404, b"no"), r"/v1/models: HTTP 404 \(no\); check that URL"),
        ("/v1/models", (401, b"who?"), "set OPENAI_API_KEY"),
        ("/v1/completions", WHOLE[:-6], "not JSON .*can't decode"),
        ("/v1/completions", b"[" * 4_000, "not JSON|nested"),
        ("/v1/completions", b"x" * 5_000, "has more than 4,096 bytes"),
        ("/v1/completions", dripping, "no complete reply .timed out; the limit is 0.5 s"),
        ("/v1/completions", b'{"choices": []}', "'choices' must be a list of answers"),
        ("/v1/completions", b'{"choices": [{"text": 5}]}', "the answer has no text"),
        (
            "/v1/completions",
            b'{"choices": [{"text": "a", "token_ids": [99999]}]}',
            r"the token id 99999 is not in \[0, 512\)",
        ),
        (
            "/v1/completions",
            b'{"choices": [{"text": "a", "token_ids": "7"}]}',
            "token ids must be a list of integers",
        ),
        (
            "/v1/completions",
            b'{"choices": [{"text": "a", "token_ids": [1, 1, 1, 1]}]}',
            "4 token ids are more than were requested",
        ),
        (
            "/v1/completions",
            json.dumps({"choices": [{"text": "a" * 49}]}).encode(),
            "49 characters are more than were requested",
        ),
        ("/v1/completions", (503, b"loading \x1b[31m"), "HTTP 503"),
    ],
)
def test_invalid_reply_is_one_clear_error(model, monkeypatch, path, reply, message):
    monkeypatch.setattr(http_client, "LARGEST_REPLY", 4096)
    monkeypatch.setattr(client, "MAX_IDS", 3)
    monkeypatch.setattr(client, "REQUEST_SECONDS", 0.5 if reply is dripping else 20.0)
    reply = (200, reply) if callable(reply) else reply
    with running(model, Behavior(replies={path: reply})) as server:
        with pytest.raises(UserError, match=message) as caught:
            check_server(model.folder, server.url)
    assert caught.value.status == USER_ERROR


def test_values_of_wrong_types_are_ignored(model):
    hostile = {"finish_reason": [1], "text": None, "logprobs": {"content": [{"logprob": "x"}]}}
    usage = {"prompt_tokens": 10**400}
    reply = json.dumps({"choices": [hostile], "usage": usage}).encode()
    found = findings(model, Behavior(replies={"/v1/completions": reply}))
    assert found["prompt ids, texts"].result == "not compared"


def test_url_and_model_are_checked(model):
    with pytest.raises(UserError, match="no complete reply .*refused"):
        check_server(model.folder, "http://127.0.0.1:9")
    with pytest.raises(UserError, match="URL must be a URL such as") as caught:
        check_server(model.folder, "localhost:8000")
    assert caught.value.status == USAGE
    for url in ("http://127.0.0.1:9/\u00fc", "http://a..b:9"):
        with pytest.raises(UserError, match="URL must be|no complete reply"):
            check_server(model.folder, url)
    with running(model, Behavior(models=("a", "b\x1b"))) as server:
        with pytest.raises(UserError, match="2 models are served; set --model to one of a, b"):
            check_server(model.folder, server.url)
        with pytest.raises(UserError, match="no model is named 'c'"):
            check_server(model.folder, server.url, "c")
        assert len(server.keys) == 2


def test_all_requests_together_are_bounded(model, monkeypatch):
    monkeypatch.setattr(client, "TOTAL_SECONDS", -1.0)
    with pytest.raises(UserError, match="use a faster server"):
        check_server(model.folder, "http://127.0.0.1:9")
