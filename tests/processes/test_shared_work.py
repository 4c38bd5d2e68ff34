"""Tests of the work that the primary does for all and the work that each process does alone.

The processes are threads of this one.
"""

import builtins
from dataclasses import replace
import io
import json
import os
from pathlib import Path
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import pytest

from llama_cpt import chat, convert
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import MeshConfig
from llama_cpt.data.batch import PreferenceBatch
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import find_chat_template
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.generation.chat_session import ChatSession
from llama_cpt.generation.decoder import make_decoder
from llama_cpt.generation.sampling import Sampling
from llama_cpt.model.llama import Llama
from llama_cpt.parallel import global_arrays
from llama_cpt.parallel.global_arrays import RowPlacement
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime import output_folder
from llama_cpt.runtime.distributed import (
    allgather_strings,
    process_index,
    run_on_primary,
)
from llama_cpt.runtime.errors import USER_ERROR, UserError
from llama_cpt.runtime.output_folder import check_shared
from llama_cpt.training import run as training_run
from llama_cpt.training.program import batch_sharding
from llama_cpt.training.reference import AnswerBatch, ReferenceIdentity, reference_logprobs
from llama_cpt.training.run import build_run
from llama_cpt.training.trace import Trace
from llama_cpt.weights.initial_model import with_model
from llama_cpt.weights.source import HfFolder
from tests.byte_tokenizer import write_byte_tokenizer
from tests.objectives.preferences import preference_batch, random_pairs
from tests.tiny_run import tiny_model
from tests.weights.hf_models import save_llama


@pytest.fixture(autouse=True)
def short_delay(monkeypatch):
    monkeypatch.setattr(output_folder, "VISIBILITY_SECONDS", 0.1)


def test_primary_reads_the_model_that_a_config_leaves_out(
    run_processes, make_config, tmp_path, monkeypatch
):
    folder, readers = save_llama(tmp_path / "llama"), []
    read = HfFolder.architecture.fget
    assert read is not None

    def recorded(source: HfFolder) -> ModelConfig:
        readers.append(process_index())
        return read(source)

    monkeypatch.setattr(HfFolder, "architecture", property(recorded))
    config = make_config(tmp_path / "run", init_from=folder, model=None)
    models = [found.model for found in run_processes(2, lambda _: with_model(config))]
    assert readers == [0] and models == [ModelConfig.from_hf(folder)] * 2


def test_run_rejects_an_output_folder_that_is_not_shared(run_processes, make_config, tmp_path):
    """The check comes before anything is written."""
    config, mesh = make_config(tmp_path / "run"), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])

    def start(index: int) -> None:
        # The same relative path in two working folders.
        build_run(replace(config, output=str(tmp_path / str(index // 2) / "run")), mesh)

    for error in run_processes(4, start):
        assert isinstance(error, UserError) and error.status == USER_ERROR
        others = "process 2 (host-2), process 3 (host-3)"
        assert f"run is not the same folder on {others} as on the primary process" in str(error)
    assert [path.name for path in tmp_path.rglob("*")] == ["0", "run"]


def test_shared_folder_may_show_new_files_with_a_delay(run_processes, tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "VISIBILITY_SECONDS", 10)
    folder = tmp_path / "run"

    def check(index: int) -> None:
        if index == 0:
            check_shared("output", str(folder))
            return
        (tmp_path / "late").mkdir()
        show_later = lambda: (time.sleep(0.3), (tmp_path / "late" / "run").symlink_to(folder))
        threading.Thread(target=show_later).start()
        check_shared("output", str(tmp_path / "late" / "run"))

    assert run_processes(2, check) == [None, None]
    assert list(folder.iterdir()) == []


def test_run_prepares_rows_in_the_primary_first(run_processes, make_config, tmp_path, monkeypatch):
    """The other processes read the rows that the primary wrote."""
    base = make_config(tmp_path / "run")
    config = replace(base, data=replace(base.data, prepared=str(tmp_path / "prepared")))
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    prepare, found = training_run.prepare, {}

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.2 if process_index() == 0 else 0)
        names = os.listdir(tmp_path / "prepared")
        found[process_index()] = sorted(name for name in names if not name.startswith("."))
        return prepare(*arguments, **options)

    def rows(index: int) -> list[int]:
        (tmp_path / "prepared").mkdir(exist_ok=True)
        return [len(rows) for rows in build_run(config, mesh).rows]

    monkeypatch.setattr(training_run, "prepare", slow)
    first, *others = run_processes(3, rows)
    assert others == [first, first] and min(first) > 0
    assert found == {0: [], 1: ["en", "heldout", "zh"], 2: ["en", "heldout", "zh"]}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def talk_parts(tmp_path_factory):
    """The tokenizer and the model of a chat."""
    tokenizer = load_tokenizer(str(write_byte_tokenizer(tmp_path_factory.mktemp("chat"))))
    config = tiny_model(tokenizer.vocab_size)
    return tokenizer, Llama(config, jax.random.key(0))


def test_all_processes_answer_the_lines_that_the_primary_reads(
    run_processes, talk_parts, tmp_path, monkeypatch, capsys
):
    tokenizer, model = talk_parts
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    file = tmp_path / "talk.json"
    lines = f"hi\n/system Be kind.\nmats\n/save {file}\n/exit\nnever read\n"

    def talk(index: int) -> list[Message]:
        decoder, template = make_decoder(model, mesh), find_chat_template(tokenizer)
        session = ChatSession(decoder, tokenizer, template, mesh, Sampling(1.0, seed=3), 8)
        chat.talk(session)
        return session.messages

    monkeypatch.setattr(sys, "stdin", Terminal(lines))
    monkeypatch.setattr(builtins, "input", lambda prompt: sys.stdin.readline())
    alone = talk(0)
    printed = capsys.readouterr().out
    assert [message.role for message in alone] == ["system", *["user", "assistant"] * 2]
    stdin = Terminal(lines)
    monkeypatch.setattr(sys, "stdin", stdin)
    file.unlink()
    assert run_processes(3, talk) == [alone] * 3
    assert stdin.read() == "never read\n"
    assert capsys.readouterr().out == printed
    saved = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [message["content"] for message in saved] == [message.content for message in alone]


@pytest.mark.slow
def test_only_the_primary_converts(run_processes, tmp_path, capfd):
    """It converts in a child process, in which JAX has no other processes."""
    source, output = save_llama(tmp_path / "source"), tmp_path / "checkpoint"
    command = ["from-hf", source, str(output)]
    assert run_processes(2, lambda index: convert.main(command)) == [0, 0]
    assert convert.verify(source, str(output)) == 0
    assert capfd.readouterr().out.count("as a checkpoint") == 1
    assert run_processes(2, lambda index: convert.main(command)) == [USER_ERROR] * 2
    assert capfd.readouterr().err.count("already exists") == 1


class Rows:
    """Rows in memory with two preference pairs per row."""

    PAIRS = random_pairs(20)

    def __len__(self) -> int:
        return 10

    def batch(self, indices: np.ndarray) -> PreferenceBatch:
        return preference_batch([self.PAIRS[2 * i : 2 * i + 2] for i in indices], 48)


def broadcast(value: Any) -> np.ndarray:
    """Return the value of the primary, as ``multihost_utils.broadcast_one_to_all`` does."""
    own = np.asarray(value)
    result = run_on_primary(own.tolist, "broadcast")
    # The collective needs the same shape in all processes.
    assert len(set(allgather_strings(f"{own.dtype} {own.shape}", "broadcast shape"))) == 1
    return np.asarray(result, own.dtype)


@pytest.mark.parametrize("cached_by", [None, 0, 1])
def test_references_are_scored_by_all_processes_or_by_none(
    cached_by, run_processes, tmp_path, monkeypatch
):
    """Each process has its own disk, and the primary's cache decides."""
    scored: dict[int, int] = {0: 0, 1: 0}
    values = np.arange(40, dtype=np.float32).reshape(10, 4)

    def reference(index: int, *, value: float = 0.0) -> np.ndarray:
        def score(batch: AnswerBatch) -> np.ndarray:
            start = 4 * (scored[index] % 3)
            scored[index] += 1
            numbers = np.minimum(np.arange(start, start + 4), 9)
            return values[numbers] + value

        return reference_logprobs(
            {"zh": (Rows(), "f")},
            lambda: score,
            folder=str(tmp_path / str(index)),
            identity=ReferenceIdentity(model="m", tokenizer="t", dtype="float32"),
            batch_size=4,
        )["zh"]

    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda value: value)
    if cached_by is not None:
        reference(0, value=100.0)
        (tmp_path / "0").rename(tmp_path / "cache")
        (tmp_path / "cache").rename(tmp_path / str(cached_by))
        scored[0] = 0
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    results = run_processes(2, reference)
    from_cache = cached_by == 0
    for result in results:
        np.testing.assert_array_equal(result, values + 100.0 * from_cache)
    assert scored == ({0: 0, 1: 0} if from_cache else {0: 3, 1: 3})
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists() == (cached_by == 1)


def test_each_process_writes_its_own_trace(run_processes, tmp_path, monkeypatch):
    """The processes share a host, after which the profiler names its files."""
    started: dict[int, str] = {}

    def start_trace(folder: str, *, create_perfetto_trace: bool) -> None:
        started[process_index()] = folder
        place = Path(folder, "plugins", "profile", "now")
        place.mkdir(parents=True)
        (place / "host.xplane.pb").write_text(f"trace {process_index()}")
        if create_perfetto_trace:
            (place / "perfetto_trace.json.gz").write_text("perfetto")

    def trace(index: int) -> None:
        steps = Trace((2, 2), str(tmp_path / "profile"))
        for step in (1, 2, 3):
            if steps.begins_at(step):
                steps.begin()
                allgather_strings("", "both trace")
            if steps.ends_at(step):
                steps.close()

    monkeypatch.setattr(jax.profiler, "start_trace", start_trace)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    assert run_processes(2, trace) == [None, None]
    (folder,) = (tmp_path / "profile" / "plugins" / "profile").iterdir()
    assert folder.name == "steps_2_2"
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "process_0.host.xplane.pb": "trace 0",
        "process_0.perfetto_trace.json.gz": "perfetto",
        "process_1.host.xplane.pb": "trace 1",
    }
    assert len(started) == 2 and not any(os.path.exists(folder) for folder in started.values())


@pytest.mark.parametrize(
    ("axes", "rows_each"),
    [
        (MeshConfig(replica=1, fsdp=8), 4),
        (MeshConfig(replica=2, fsdp=4), 4),
        (MeshConfig(replica=1, fsdp=1, context=8), 8),
        (MeshConfig(replica=1, fsdp=1, context=4, tensor=2), 8),
        (MeshConfig(replica=1, fsdp=4, context=2), 4),
    ],
    ids=str,
)
def test_devices_of_each_process_get_their_part_of_the_batch(
    axes, rows_each, run_processes, monkeypatch
):
    """Each of two processes has four devices; with a context axis both read the same rows."""
    mesh = make_mesh(axes)
    own = lambda device: device.id // 4 == process_index()
    whole = np.arange(2 * 8 * 16).reshape(2, 8, 16)

    def place(index: int) -> list[int]:
        placement = RowPlacement(batch_sharding(mesh), 8)
        placed = placement.to_global(whole[:, placement.local_rows])
        shards = [shard for shard in placed.addressable_shards if own(shard.device)]
        assert len(shards) == 4
        for shard in shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])
        return placement.local_rows.tolist()

    monkeypatch.setattr(global_arrays, "_is_own", own)
    first, second = run_processes(2, place)
    assert len(first) == len(second) == rows_each
    assert sorted({*first, *second}) == list(range(8))
