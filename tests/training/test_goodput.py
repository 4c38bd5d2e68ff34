"""Goodput counts every second once, also over restarts; the watchdog reports late phases."""

import contextlib
import io
import sys
import time

import pytest

from llama_cpt.training import watchdog
from llama_cpt.training.goodput import Goodput
from llama_cpt.training.watchdog import Watchdog


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """A list with the current time, which the test changes."""
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def spend(clock: Goodput, now: list[float], part: str, seconds: float) -> None:
    with clock.measure(part):
        now[0] += seconds


def test_goodput_counts_every_second_once(now):
    clock = Goodput()
    now[0] += 10
    spend(clock, now, "compile", 30)
    clock.switch_to("step")
    now[0] += 50
    spend(clock, now, "save", 10)
    values = clock.values()
    assert values["perf/goodput"] == pytest.approx(0.5)
    assert values["perf/seconds/startup"] == 10 and values["perf/seconds/save"] == 10
    assert clock.summary() == "goodput 50.0% of 1m40s; compile 30.0%, startup 10.0%, save 10.0%"


def test_restart_counts_repeated_and_stopped_seconds(now):
    first = Goodput()
    first.switch_to("step")
    lines = []
    for step in (1, 2, 3):
        now[0] += 10
        lines.append({"step": step} | first.values())
    # The run is killed after step 3 and restarted 100 seconds later. Step 1 was saved.
    now[0] += 100
    second = Goodput()
    second.continue_from([{"step": 0}, *lines], 1)
    now[0] += 5
    second.switch_to("step")
    now[0] += 20
    assert second.values() == {
        "perf/goodput": pytest.approx(30 / 155),
        "perf/unix_seconds": 1155.0,
        "perf/seconds/step": 30,
        "perf/seconds/startup": 5,
        "perf/seconds/repeated": 20,
        "perf/seconds/stopped": 100,
    }


@pytest.mark.parametrize("jump", [-1.8e9, -3600.0, 3600.0, 1.8e9])
def test_clock_that_is_set_during_an_attempt_does_not_change_its_seconds(jump, now, monkeypatch):
    clock = Goodput()
    monkeypatch.setattr(time, "time", lambda: now[0] + jump)
    spend(clock, now, "compile", 30)
    spend(clock, now, "step", 10)
    values = clock.values()
    assert values["perf/goodput"] == pytest.approx(0.25)
    assert values["perf/seconds/compile"] == 30
    assert values["perf/unix_seconds"] == 1040 + jump


@pytest.mark.parametrize(
    ("jump", "message"),
    [
        (-1.8e9, "is 500000h00m before the last line"),
        (-3600.0, "is 1h00m before the last line"),
        (-5.0, ""),
        (1.8e9, "after the last line"),
    ],
)
def test_clocks_of_attempts_that_disagree_are_reported(jump, message, now, caplog):
    lines = [{"step": 1, "perf/seconds/step": 10.0, "perf/unix_seconds": now[0] - jump}]
    clock = Goodput()
    clock.continue_from(lines, 1)
    spend(clock, now, "save", 30)
    values = clock.values()
    assert values["perf/goodput"] == pytest.approx(0.25) and "perf/seconds/stopped" not in values
    assert message in caplog.text and len(caplog.records) == bool(message)


def test_negative_and_missing_seconds_of_earlier_lines_count_as_zero(now):
    """Earlier versions wrote negative seconds if the clock was set back."""
    line = {"step": 1, "perf/seconds/step": -1e9, "perf/seconds/save": None}
    clock = Goodput()
    clock.continue_from([line | {"perf/unix_seconds": now[0]}], 1)
    spend(clock, now, "step", 10)
    assert clock.values()["perf/goodput"] == 1.0


def test_seconds_between_two_lines_are_interpolated():
    lines = [
        {"step": step, "perf/seconds/step": seconds, "perf/unix_seconds": 0.0}
        for step, seconds in ((1, 10.0), (100, 1000.0), (200, 3000.0))
    ]
    for first_step, trained in ((0, 0.0), (1, 10.0), (150, 2000.0), (200, 3000.0), (250, 3000.0)):
        clock = Goodput()
        clock.continue_from(lines, first_step)
        values = clock.values()
        assert values.get("perf/seconds/step", 0.0) == pytest.approx(trained)
        assert values.get("perf/seconds/repeated", 0.0) == pytest.approx(3000 - trained)


def test_watchdog_reports_a_late_step_once_with_stacks(monkeypatch, capfd, caplog):
    monkeypatch.setattr(watchdog, "STEP_SECONDS", 0.05)
    clock = Goodput()
    clock.switch_to("step")
    with Watchdog(clock, poll_seconds=0.01) as dog:
        clock.seconds["step"], dog.steps_done = 0.002, 2
        time.sleep(0.3)
    assert caplog.text.count("watchdog: process 0: step, 2 steps after the launch") == 1
    assert "test_watchdog_reports_a_late_step_once_with_stacks" in capfd.readouterr().err


def test_watchdog_writes_stacks_to_a_buffer_without_a_file_descriptor(monkeypatch):
    """A sweep captures the output of its trials in such a buffer."""
    monkeypatch.setattr(watchdog, "STEP_SECONDS", 0.05)
    clock = Goodput()
    clock.switch_to("step")
    output, console = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", console)
    with contextlib.redirect_stderr(output), Watchdog(clock, poll_seconds=0.01) as dog:
        clock.seconds["step"], dog.steps_done = 0.002, 2
        time.sleep(0.3)
    stacks = output.getvalue()
    assert "Thread MainThread:\n" in stacks and "Thread watchdog:\n" in stacks
    assert "test_watchdog_writes_stacks_to_a_buffer_without_a_file_descriptor" in stacks
    assert console.getvalue() == f"watchdog: process 0: thread stacks:\n{stacks}"


def test_watchdog_limit_ignores_earlier_starts(monkeypatch, caplog):
    """The hours of earlier attempts do not raise the limit."""
    monkeypatch.setattr(watchdog, "STEP_SECONDS", 0.05)
    clock = Goodput()
    clock.continue_from([{"step": 9, "perf/seconds/step": 9000.0, "perf/unix_seconds": 0.0}], 9)
    clock.switch_to("step")
    with Watchdog(clock, poll_seconds=0.01) as dog:
        dog.steps_done = 2
        time.sleep(0.3)
    assert "watchdog: process 0: step, 2 steps after the launch" in caplog.text


def test_watchdog_is_silent_while_steps_finish(monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "STEP_SECONDS", 0.5)
    clock = Goodput()
    with Watchdog(clock, poll_seconds=0.01) as dog:
        dog.steps_done = 9
        for _ in range(10):
            clock.switch_to("step")
            time.sleep(0.02)
    assert not caplog.records
