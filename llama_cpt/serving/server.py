"""A client of an OpenAI-compatible server that validates every reply.

The client uses endpoints of vLLM and of llama.cpp if the server has them: ``/tokenize``,
``/apply-template`` and ``/props``. Other servers report only the number of prompt tokens.
"""

from dataclasses import dataclass
import math
import time
from typing import Any, TypeGuard

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.http_client import (
    KEY_VARIABLE,
    HttpClient,
    NoReplyError,
    StatusError,
    TooLargeError,
)
from llama_cpt.runtime.json_files import parse_json_object
from llama_cpt.runtime.untrusted_text import one_line
from llama_cpt.serving.prompts import Prompt

REQUEST_SECONDS = 300.0
"""Maximum time for one reply. A server can compile a program for the first request of a shape."""
TOTAL_SECONDS = 3600.0
"""Maximum time for all replies together."""
MAX_MODELS = 20
"""Maximum number of models that a message lists."""
MAX_IDS = 4096
"""Maximum number of token ids of a prompt or an answer. The prompts and answers are short."""
MAX_NUMBER = 1e15
_REMEDY = "check that URL is an OpenAI-compatible server"
# The HTTP statuses Not Found, Method Not Allowed and Not Implemented.
_ABSENT = (404, 405, 501)
# The HTTP statuses Bad Request and Unprocessable Entity.
_REJECTED = (400, 422)


@dataclass(frozen=True)
class Answer:
    """The answer of a server at temperature 0. A value that the server does not report is None."""

    text: str
    finish_reason: str
    ids: list[int] | None
    """The ids of the answer; the last id can be the token that ends the answer."""
    logprobs: list[float] | None
    """The log-probability of each id in nats."""
    prompt_ids: list[int] | None
    prompt_tokens: int | None
    """The number of tokens of the prompt."""


class Server:
    """The server at ``url``, which can end in ``/v1``.

    ``model`` is the name of the served model; it can be empty if the server serves one model. Ids
    must be less than ``vocab_size``. All methods raise UserError if the server cannot be reached,
    rejects a request, or sends an invalid reply.
    """

    def __init__(self, url: str, model: str, vocab_size: int) -> None:
        self._client = HttpClient(url.rstrip("/").removesuffix("/v1"), "URL")
        self._vocab_size = vocab_size
        self._deadline = time.monotonic() + TOTAL_SECONDS
        self._absent: set[str] = set()
        self._plain = False
        """True if the server rejects requests for ids and log-probabilities."""
        self.url = self._client.url
        self.model = self._find_model(model)

    def answer(self, prompt: Prompt, max_tokens: int) -> Answer:
        """Return the greedy answer to ``prompt``, of at most ``max_tokens`` tokens."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": 0}
        # The field of vLLM for the ids of an answer, and then the fields of llama.cpp.
        wanted: dict[str, Any] = {"return_token_ids": True}
        wanted |= {"return_tokens": True, "verbose": True}
        if isinstance(prompt, str):
            path = "/v1/completions"
            body |= {"prompt": prompt}
            wanted |= {"logprobs": 1}
        else:
            path = "/v1/chat/completions"
            body |= {"messages": _messages(prompt)}
            wanted |= {"logprobs": True, "top_logprobs": 1}
        reply = None
        if not self._plain:
            reply = self._send(path, body | wanted, accepted=_REJECTED)
            self._plain = reply is None
        return self._answer(path, self._send(path, body) if reply is None else reply)

    def tokenize(self, prompt: Prompt) -> list[int] | None:
        """Return the ids of ``prompt``, or None if the server has no endpoint that reports them."""
        text = prompt
        if not isinstance(prompt, str):
            # llama.cpp renders conversations to text. vLLM renders and tokenizes in one request.
            rendered = self._optional("/apply-template", {"messages": _messages(prompt)})
            text = None if rendered is None else rendered.get("prompt")
        body: dict[str, Any] = {"model": self.model}
        if isinstance(text, str):
            # The fields of vLLM, and then those of llama.cpp.
            body |= {"prompt": text, "add_special_tokens": True}
            body |= {"content": text, "add_special": True, "parse_special": True}
        elif not isinstance(prompt, str):
            body |= {"messages": _messages(prompt), "add_generation_prompt": True}
        reply = self._optional("/tokenize", body)
        # llama.cpp returns an empty list for a request that it does not support.
        if not reply or not reply.get("tokens"):
            return None
        return self._ids("/tokenize", reply["tokens"])

    def sampling_defaults(self) -> dict[str, float] | None:
        """Return the server's default sampling settings, or None if it does not report them."""
        reply = self._optional("/props", None)
        settings = (reply or {}).get("default_generation_settings")
        values = settings.get("params", settings) if isinstance(settings, dict) else None
        if not isinstance(values, dict):
            return None
        return {name: value for name, value in values.items() if _is_number(value)} or None

    def _find_model(self, name: str) -> str:
        """Return ``name``, or the name of the only model if ``name`` is empty."""
        path = "/v1/models"
        entries = self._send(path, None).get("data")
        entries = entries if isinstance(entries, list) else []
        found = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        names = [one for one in found if isinstance(one, str)]
        if not names:
            raise self._invalid(path, "'data' must be a list of models with an 'id'")
        if name in names or (not name and len(names) == 1):
            return name or names[0]
        listed = ", ".join(map(self._shown, names[:MAX_MODELS]))
        problem = f"no model is named {name!r}" if name else f"{len(names)} models are served"
        raise UserError(f"{self.url}: {problem}; set --model to one of {listed}.")

    def _optional(self, path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the reply of an endpoint, or None if the server does not have or allow it."""
        if path in self._absent:
            return None
        reply = self._send(path, body, accepted=(*_ABSENT, *_REJECTED, 403))
        if reply is None:
            self._absent.add(path)
        return reply

    def _send(
        self, path: str, body: dict[str, Any] | None, *, accepted: tuple[int, ...] = ()
    ) -> Any:
        """Return the JSON object in a reply, or None for a status in ``accepted``."""
        seconds = min(REQUEST_SECONDS, self._deadline - time.monotonic())
        where = f"{self.url}{path}"
        if seconds <= 0:
            raise UserError(
                f"{where}: the comparison took more than {TOTAL_SECONDS:.0f} s; use a faster "
                "server or wait until the server is idle."
            )
        try:
            content = self._client.request(path, body, seconds)
        except StatusError as error:
            if error.code in accepted:
                return None
            remedy = f"set {KEY_VARIABLE}" if error.code in (401, 403) else _REMEDY
            raise UserError(f"{where}: HTTP {error.code} ({error}); {remedy}.") from None
        except NoReplyError as error:
            raise UserError(
                f"{where}: no complete reply ({error}; the limit is {seconds:.3g} s); check that "
                "the server is running."
            ) from None
        except TooLargeError as error:
            raise UserError(f"{where}: the reply has {error}; {_REMEDY}.") from None
        return parse_json_object(content, where, _REMEDY)

    def _answer(self, path: str, reply: dict[str, Any]) -> Answer:
        """Return the answer in ``reply``. Raises UserError if ``reply`` is not a completion."""
        choices = reply.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            raise self._invalid(path, "'choices' must be a list of answers")
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        if not isinstance(text, str | None):
            raise self._invalid(path, "the answer has no text")
        if text and len(text) > 16 * MAX_IDS:
            raise self._invalid(path, f"{len(text):,} characters are more than were requested")
        usage = reply.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        verbose = reply.get("__verbose")
        ids = verbose.get("tokens") if isinstance(verbose, dict) else choice.get("token_ids")
        ids = None if ids is None else self._ids(path, ids)
        prompt_ids = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
        return Answer(
            text or "",
            self._shown(choice.get("finish_reason")),
            ids,
            _logprobs(choice.get("logprobs"), ids),
            None if prompt_ids is None else self._ids(path, prompt_ids),
            int(count) if _is_number(count) else None,
        )

    def _ids(self, path: str, value: Any) -> list[int]:
        if not isinstance(value, list) or not all(type(one) is int for one in value):
            raise self._invalid(path, "token ids must be a list of integers")
        if len(value) > MAX_IDS:
            raise self._invalid(path, f"{len(value):,} token ids are more than were requested")
        outside = [one for one in value if not 0 <= one < self._vocab_size]
        if outside:
            raise self._invalid(
                path, f"the token id {outside[0]} is not in [0, {self._vocab_size}) as in FOLDER"
            )
        return value

    def _shown(self, value: Any) -> str:
        """Return a value of a reply as a short text on one line, without the API key."""
        return one_line(self._client.redacted(str(value)))[:100]

    def _invalid(self, path: str, problem: str) -> UserError:
        return UserError(f"{self.url}{path}: invalid reply: {problem}; {_REMEDY}.")


def _messages(conversation: Prompt) -> list[dict[str, str]]:
    assert not isinstance(conversation, str)
    return [{"role": message.role, "content": message.content} for message in conversation]


def _logprobs(details: Any, ids: list[int] | None) -> list[float] | None:
    """Return the log-probability of each of ``ids``, or None if they are not known.

    llama.cpp omits entries of tokens that end in an incomplete character.
    """
    details = details if isinstance(details, dict) else {}
    content, values = details.get("content"), details.get("token_logprobs")
    if isinstance(content, list):
        values = [one.get("logprob") if isinstance(one, dict) else None for one in content]
    if ids is None or not isinstance(values, list) or len(values) != len(ids):
        return None
    numbers = [value for value in values if _is_number(value)]
    return numbers if len(numbers) == len(ids) else None


def _is_number(value: Any) -> TypeGuard[float]:
    """Return True if ``value`` is a finite number. JSON can contain integers of any size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < MAX_NUMBER and not math.isnan(value)
