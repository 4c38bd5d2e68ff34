"""A damaged file of token rows ends a run with one error, and the repaired run continues."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama_cpt.config.schema import CheckpointConfig, TrainConfig
from llama_cpt.data.rows import TokenRows
from llama_cpt.runtime.errors import USER_ERROR, UserError
from llama_cpt.training.run import Run
from llama_cpt.training.stop import Outcome
from tests.runs import learnt, run_of, saved_steps, train

STEP = 6


def reads(folder: Path, rows: np.ndarray) -> bool:
    """Return whether ``rows`` can be read."""
    try:
        TokenRows(str(folder)).read(rows)
    except UserError:
        return False
    return True


def damage_row_of(run: Run, step: int) -> Path:
    """Damage a row that is first read in ``step``, counted from 1; return its file."""
    rows = np.arange(step * run.config.global_batch_size, dtype=np.int64)
    corpus, index = run.mixture.locate(rows)
    own = index[corpus == 1]
    bad = next(row for row in own[::-1] if row not in own[: -run.config.global_batch_size])
    before = own[own != bad]
    folder = Path(run.config.data.prepared) / "en"
    file = Path(run.rows[1].place(int(bad))[0])
    content = file.read_bytes()
    for at in range(64, len(content), 32):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        if reads(folder, before) and not reads(folder, np.array([bad])):
            return file
    raise AssertionError(f"row {bad} is not damaged")


@pytest.mark.slow
def test_run_ends_at_a_damaged_row_and_resumes_after_the_remedy(make_config, tmp_path):
    def config(name: str) -> TrainConfig:
        given = make_config(tmp_path / name, checkpoint=CheckpointConfig(every_steps=2))
        return replace(given, data=replace(given.data, prepared=str(tmp_path / "rows")))

    assert train(config("whole")) is Outcome.FINISHED
    file = damage_row_of(run_of(config("broken")), STEP)
    message = rf"^{file}: Corrupted .*hash mismatch.*; delete its folder to prepare the corpus"
    for _ in range(2):
        with pytest.raises(UserError, match=message) as caught:
            train(config("broken"))
        assert caught.value.status == USER_ERROR
        assert "\n" not in str(caught.value)
        assert saved_steps(tmp_path / "broken") == [2, 4]
        found = learnt(tmp_path / "broken")
        assert found == learnt(tmp_path / "whole")[: len(found)]
    for one in file.parent.iterdir():
        one.unlink()
    file.parent.rmdir()
    assert train(config("broken")) is Outcome.FINISHED
    assert learnt(tmp_path / "broken") == learnt(tmp_path / "whole")
