"""Tests that templates are bounded, and that the process that renders them is replaced and ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from llama_cpt.runtime import jinja_runner, jinja_worker
from llama_cpt.runtime.jinja_runner import TemplateError, TemplateRefusalError, render

TIME, MEMORY, SIZE = "runs longer than 1 s", "needs more than 1 GB", "writes more than 67,108,864 "
HOSTILE = {
    "nested ranges": (
        TIME,
        "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}",
    ),
    "lipsum": (TIME, "{{ lipsum(n=1000000) }}"),
    "product": (MEMORY, "{{ 'a' * 10**10 }}"),
    "product of a list": (MEMORY, "{{ [1] * 10**9 }}"),
    "power": (MEMORY, "{{ 10**(10**10) }}"),
    "width of a format": (MEMORY, "{{ '%10000000000d' % 1 }}"),
    "center": (MEMORY, "{{ 'a'|center(10**10) }}"),
    "indent": (f"{TIME}|{MEMORY}", "{{ ('a\n' * 100000)|indent(100000) }}"),
    "replace": (MEMORY, "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}"),
    "growth of a namespace": (
        f"{TIME}|{MEMORY}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}",
    ),
    "many short texts": (
        SIZE,
        "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name, monkeypatch):
    message, source = HOSTILE[name]
    # On a busy machine, a template needs more than a second to reach another limit.
    if TIME in message:
        monkeypatch.setattr(jinja_worker, "SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(TemplateError, match=message):
        render("chat", source, [{}])
    assert time.monotonic() - start < 5
    assert render("chat", "{{ x }}", [{"x": 1}]) == ["1"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "RecursionError"),
        ("{{ x.__class__.__mro__ }}", "unsafe operation"),
        ("{{ x.append(1) }}", "unsafe operation"),
        ("{{ dict.__class__.__mro__ }}", "unsafe operation"),
        ("{{ cycler.__init__.__globals__.os.system('x') }}", "unsafe operation"),
        ("{% set n = namespace() %}{% set n._a = 1 %}", "unsafe operation"),
        ("{{ y.z }}", "'y' is undefined"),
        ("\n{% for %}", "Expected an expression"),
    ],
)
def test_invalid_templates_are_errors(source, message):
    with pytest.raises(TemplateError, match=message) as caught:
        render("chat", source, [{"x": []}])
    assert caught.value.line == (2 if "for" in source else None)


def test_refusal_has_the_message_of_the_template():
    with pytest.raises(TemplateRefusalError, match="^not today$"):
        render("chat", "{{ raise_exception('not today') }}", [{}])


@pytest.mark.parametrize(("value", "text"), [("1", "1"), ("", ""), ("messages", "[]")])
def test_refusal_can_be_any_value(value, text, capfd):
    with pytest.raises(TemplateRefusalError) as caught:
        render("chat", f"{{{{ raise_exception({value}) }}}}", [{"messages": []}])
    assert str(caught.value) == text
    assert not capfd.readouterr().err


def test_texts_of_many_contexts_are_complete_and_in_order():
    contexts = [{"x": f"\ud800{n}".ljust(1_000_000)} for n in range(6)]
    assert render("chat", "{{ x }}", contexts) == [context["x"] for context in contexts]
    assert render("chat", "{{ x }}", []) == []


def test_values_that_are_not_plain_data_become_text():
    class Text(str):
        def save(self) -> str:
            return "saved"

    values = {"x": Text("a"), "y": {1}, "z": object, "t": (True, 2.5, None)}
    (text,) = render("chat", "{{ x }} {{ x.save }} {{ y }} {{ z }} {{ t }}", [values])
    assert text == "a  [1] <class 'object'> (True, 2.5, None)"
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TemplateError, match="nested too deeply"):
        render("chat", "", [{"x": deep}])


def test_process_that_was_killed_is_replaced():
    render("chat", "", [{}])
    assert jinja_runner._process is not None
    first = jinja_runner._process.pid
    os.kill(first, signal.SIGKILL)
    assert render("chat", "{{ x }}", [{"x": 1}]) == ["1"]
    assert jinja_runner._process.pid != first


def test_interrupt_between_request_and_reply_does_not_mix_up_texts(monkeypatch):
    read = jinja_runner._read

    def interrupted(pipe: int, size: int) -> bytes:
        monkeypatch.setattr(jinja_runner, "_read", read)
        raise KeyboardInterrupt

    render("chat", "", [{}])
    monkeypatch.setattr(jinja_runner, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render("chat", "old", [{}])
    assert render("chat", "new", [{}]) == ["new"]


def render_in_a_pool(number: int) -> tuple[str, int]:
    (text,) = render("chat", "{{ x }}", [{"x": number}])
    assert jinja_runner._process is not None
    return text, jinja_runner._process.pid


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_each_process_of_a_pool_has_its_own_renderer_that_ends_with_it():
    _, own = render_in_a_pool(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(render_in_a_pool, range(20), chunksize=1)
        pool.close()
        pool.join()
    assert [text for text, _ in found] == [str(n) for n in range(20)]
    pids = {pid for _, pid in found}
    assert own not in pids and not any(map(is_running, pids))
    assert render_in_a_pool(1) == ("1", own)


def test_renderer_ends_with_its_command_and_does_not_import_jax():
    script = (
        "import sys\nfrom llama_cpt.runtime import jinja_runner as r\n"
        "assert r.render('task', '{{ a }}\\n', [{'a': 1}]) == ['1\\n']\n"
        "print(r._process.pid, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    pid, has_jax = done.stdout.split()
    assert has_jax == "False" and not is_running(int(pid))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
