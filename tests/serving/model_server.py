"""A local OpenAI-compatible server that answers from our own generation, and planted faults."""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import threading
from typing import Any

from llama_cpt.data.chat.conversations import Message
from llama_cpt.weights.prompt_format import PromptFormat

Ids = list[int]


@dataclass
class Model:
    """The answers of a tiny model, by the ids of the prompt."""

    folder: str
    prompts: PromptFormat
    answers: dict[tuple[int, ...], Ids]
    """The greedy answers to questions, which end before the token that ends an answer."""
    logprobs: dict[tuple[int, ...], list[float]]

    def text_ids(self, text: str) -> Ids:
        tokenizer = self.prompts.tokenizer
        return [*tokenizer.text_prefix, *tokenizer.encode(text)]

    def chat_ids(self, messages: list[Message]) -> Ids:
        assert self.prompts.template
        return self.prompts.template.prompt(messages)

    def parsed_ids(self, text: str) -> Ids:
        """Return the ids of a rendered conversation, as servers encode it: names of special tokens
        in messages become special tokens."""
        assert self.prompts.template
        return self.prompts.template.encode(text)


@dataclass
class Behavior:
    """Differences of a server from our own generation."""

    dialect: str = "vllm"
    """vllm, llama.cpp or plain; a plain server reports only texts and the number of tokens."""
    text_ids: Callable[[Ids], Ids] = lambda ids: ids
    chat_ids: Callable[[Model, list[Message]], Ids] = Model.chat_ids
    answer: Callable[[str, Ids], Ids] = lambda question, ids: ids
    """Map from the question and its greedy answer to the answer of the server."""
    finish: dict[str, str] = field(default_factory=dict)
    """Values of ``finish_reason`` by question."""
    deviation: float = 0.0
    """Value that is added to each log-probability."""
    models: tuple[str, ...] = ("tiny",)
    properties: dict[str, Any] | None = None
    """The reply to ``GET /props``."""
    replies: dict[str, Any] = field(default_factory=dict)
    """The replies to some paths: bytes, or a tuple (status, bytes)."""


class ModelServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, model: Model, behavior: Behavior) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.behavior = model, behavior
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON object for a request, or None if the server does not have ``path``."""
        behavior = self.behavior
        match path, behavior.dialect:
            case "/v1/models", _:
                return {"data": [{"id": name} for name in behavior.models]}
            case "/props", _:
                return behavior.properties
            case (("/v1/completions" | "/v1/chat/completions"), _):
                return self._completion(body)
            case "/apply-template", "llama.cpp":
                return {"prompt": self._rendered(body)}
            case "/tokenize", "llama.cpp":
                return {"tokens": self._llama_cpp_ids(body)}
        return None

    def _rendered(self, body: dict[str, Any]) -> str:
        assert self.model.prompts.template
        text = self.model.prompts.template.prompt_text(_messages(body))
        return text.replace("\ufdd0", "").replace("\ufdd1", "")

    def _llama_cpp_ids(self, body: dict[str, Any]) -> Ids:
        text = body.get("content", "")
        if text.startswith("<|begin_of_text|>"):
            return self.model.parsed_ids(text)
        return self.behavior.text_ids(self.model.text_ids(text)) if text else []

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        model, behavior = self.model, self.behavior
        if "messages" in body:
            ours = model.chat_ids(_messages(body))
            prompt = behavior.chat_ids(model, _messages(body))
            question = body["messages"][-1]["content"]
            if behavior.dialect == "llama.cpp":
                prompt = model.parsed_ids(self._rendered(body))
        else:
            ours = model.text_ids(body["prompt"])
            prompt, question = behavior.text_ids(ours), body["prompt"]
        known = model.answers.get(tuple(ours), [7])[: body["max_tokens"]]
        ids = behavior.answer(question, known)
        finish = "stop" if len(ids) < body["max_tokens"] else "length"
        choice: dict[str, Any] = {"finish_reason": behavior.finish.get(question, finish)}
        text = model.prompts.tokenizer.decode(ids)
        choice |= {"message": {"content": text}} if "messages" in body else {"text": text}
        reply = {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}
        if behavior.dialect == "vllm" and body.get("return_token_ids"):
            choice["token_ids"] = ids
            reply["prompt_token_ids"] = prompt
            values = model.logprobs.get(tuple(ours), [])
            entries = [{"logprob": value + behavior.deviation} for value in values]
            choice["logprobs"] = {"content": entries}
        if behavior.dialect == "llama.cpp" and body.get("verbose") and body.get("return_tokens"):
            reply["__verbose"] = {"tokens": ids}
        return reply


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        server = self.server
        assert isinstance(server, ModelServer)
        server.keys.append(self.headers.get("Authorization"))
        fixed = server.behavior.replies.get(self.path)
        if fixed is None:
            reply = server.reply(self.path, body)
            fixed = 404 if reply is None else 200, json.dumps(reply).encode()
        status, content = fixed if isinstance(fixed, tuple) else (200, fixed)
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.end_headers()
            for part in [content] if isinstance(content, bytes) else content():
                self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


def _messages(body: dict[str, Any]) -> list[Message]:
    return [Message(one["role"], one["content"]) for one in body["messages"]]


@contextlib.contextmanager
def running(model: Model, behavior: Behavior) -> Iterator[ModelServer]:
    """Run a server in a thread until the context ends."""
    with ModelServer(model, behavior) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
