"""The command that chats with a model in a terminal: ``python -m llama_cpt.chat MODEL``."""

import argparse
import io
import json
import os
from pathlib import Path
import sys
from typing import Any

import jax

from llama_cpt.config.model import ModelConfig
from llama_cpt.generation.chat_session import ChatSession
from llama_cpt.generation.decoder import decoder_mesh, load_decoder
from llama_cpt.generation.sampling import Sampling
from llama_cpt.runtime.distributed import (
    distributed_session,
    is_primary,
    process_count,
    run_on_primary,
)
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.untrusted_text import printable
from llama_cpt.weights.prompt_format import PromptFormat, prompt_format
from llama_cpt.weights.source import open_source

SAMPLING_DEFAULTS = {"temperature": 0.6, "top_k": 0, "top_p": 0.9, "min_p": 0.0}
HELP = """\
/system TEXT  set the system message; without TEXT, remove it
/reset        start a new conversation with the same system message
/save FILE    write the messages as JSON to a new file (only at a terminal)
/help         print this list
/exit         leave (or Ctrl-D); Ctrl-C stops an answer, or all processes if there are several"""


def main(arguments: list[str]) -> int:
    """Load the model named in ``arguments``, run the conversation and return the exit status."""
    options = _parse(arguments)
    if options.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens={options.max_new_tokens} must be 1 or more.")
    _sampling(options, {})  # Raises an error before the weights are loaded.
    with distributed_session():
        _converse(options)
    return 0


def _sampling(options: argparse.Namespace, generation: dict[str, Any]) -> Sampling:
    """Return the sampling settings: the options or, without an option, the model's own settings.

    ``generation`` is the content of the model's ``generation_config.json``. Raises UserError if a
    setting is invalid.
    """
    own = generation if generation.get("do_sample", True) else generation | {"temperature": 0.0}
    values: dict[str, Any] = {}
    for name, default in SAMPLING_DEFAULTS.items():
        found = getattr(options, name)
        found = own.get(name) if found is None else found
        kind, what = (int, "an integer") if name == "top_k" else (int | float, "a number")
        if isinstance(found, bool) or not isinstance(found, kind | None):
            raise UserError(
                f"{name}={found!r} in the model's generation_config.json must be {what}; set "
                f"--{name.replace('_', '-')}."
            )
        values[name] = default if found is None else found
    return Sampling(**values, seed=options.seed)


def _converse(options: argparse.Namespace) -> None:
    source = open_source(options.model)
    config = source.architecture
    prompts = prompt_format(source, options.tokenizer)
    sampling = _sampling(options, prompts.generation)
    session = _session(options.model, config, prompts, sampling, options.max_new_tokens)
    session.set_system(options.system)
    if session.template is None:
        _print_notice("a base model: its tokenizer has no chat tokens, so it continues your text.")
    talk(session)


def talk(session: ChatSession) -> None:
    """Answer each line on stdin of the primary process, until the end of stdin or ``/exit``."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    while (line := run_on_primary(_next_line, "line of a chat")) is not None:
        try:
            if line == "/exit":
                return
            if line.startswith("/"):
                _run_command(session, line)
            elif line:
                _answer(session, line)
        except UserError as error:
            _print_notice(str(error))
        except OSError as error:
            # The other processes already compute the next tokens, so this process cannot continue.
            if process_count() > 1:
                raise
            _print_notice(str(error))


def _next_line() -> str | None:
    """Return the next line of stdin without surrounding spaces, or None at the end of stdin."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print()


def _answer(session: ChatSession, line: str) -> None:
    answer = session.reply(line)
    try:
        for piece in answer:
            _print_text(piece)
    except KeyboardInterrupt:
        # The other processes already compute the next tokens, so this process cannot stop alone.
        if process_count() > 1:
            raise
        answer.close()
    _print_text("\n")
    if session.dropped:
        _print_notice(f"the context is full: the oldest {session.dropped} messages were left out.")


def _run_command(session: ChatSession, line: str) -> None:
    command, _, value = line.partition(" ")
    value = value.strip()
    match command:
        case "/system":
            session.set_system(value)
            _print_notice("system message set." if value else "no system message.")
        case "/reset":
            session.reset()
            _print_notice("the conversation was reset.")
        case "/save" if value:
            if is_primary():
                _save(session, value)
            _print_notice(f"{len(session.messages)} messages written to {value}.")
        case "/save":
            _print_notice("/save needs a file name.")
        case "/help":
            _print_notice(HELP)
        case _:
            _print_notice(f"no command {command}; /help lists them.")


def _save(session: ChatSession, file: str) -> None:
    """Write the messages to the new file ``file``.

    Raises UserError if the file exists, or if stdin is not a terminal: the lines of a pipe can come
    from someone who is not permitted to write files.
    """
    if not sys.stdin.isatty():
        raise UserError("/save works only at a terminal; redirect stdout to keep the answers.")
    messages = [{"role": m.role, "content": m.content} for m in session.messages]
    text = json.dumps({"messages": messages}, ensure_ascii=False, indent=1)
    try:
        # Mode x also fails for a link to a file that does not exist.
        with Path(os.path.expanduser(file)).open("x", encoding="utf-8") as new:
            new.write(text + "\n")
    except FileExistsError:
        raise UserError(f"{file} exists; choose another name.") from None


def _session(
    source: str,
    config: ModelConfig,
    prompts: PromptFormat,
    sampling: Sampling,
    max_new_tokens: int,
) -> ChatSession:
    """Load the weights onto all devices and return a session without messages."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    mesh = decoder_mesh(config)
    decoder = load_decoder(source, config, mesh, dtype)
    return ChatSession(
        decoder,
        prompts.tokenizer,
        prompts.template,
        mesh,
        sampling,
        max_new_tokens,
        end_ids=prompts.stop_ids,
    )


def _print_text(text: str) -> None:
    """Print ``text``, a part of the model's answer, in the primary process."""
    if is_primary():
        # Each character is checked alone, so an escape sequence that is split between parts of the
        # answer is also removed.
        print(printable(text), end="", flush=True)


def _print_notice(text: str) -> None:
    """Print ``text``, which is not part of the conversation, to stderr in the primary process."""
    if is_primary():
        print(printable(text), file=sys.stderr, flush=True)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.chat",
        description="Chat with a model in the terminal, or pipe in one message per line.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a Hugging Face folder or hub name, or a run's folder")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system message")
    default = "default: the model's generation_config.json, or"
    parser.add_argument("--temperature", type=float, help=f"0 is greedy; {default} 0.6")
    parser.add_argument("--top-k", type=int, help=f"0 keeps all; {default} 0")
    parser.add_argument("--top-p", type=float, help=f"{default} 0.9")
    parser.add_argument("--min-p", type=float, help=f"{default} 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, help="maximum length of an answer"
    )
    parser.add_argument("--tokenizer", default="", help="tokenizer to use if MODEL has none")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
