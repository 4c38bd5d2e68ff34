"""Locks of output folders."""

from etils import epath
import pytest

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.output_folder import file_lock
from tests.special_files import KINDS, make_special_file


@pytest.mark.parametrize("kind", KINDS)
def test_lock_that_is_not_a_file_is_an_error(tmp_path, kind):
    file = epath.Path(tmp_path / ".lock")
    make_special_file(tmp_path / ".lock", kind)
    with (
        pytest.raises(UserError, match="lock: is not a regular file; remove it"),
        file_lock(file, "", wait=False),
    ):
        pass


def test_lock_excludes_others_and_keeps_the_content_of_a_link(tmp_path):
    (tmp_path / "text").write_text("kept")
    (tmp_path / ".lock").symlink_to("text")
    file = epath.Path(tmp_path / ".lock")
    with (
        file_lock(file, "", wait=False),
        pytest.raises(UserError, match="held"),
        file_lock(file, "held", wait=False),
    ):
        pass
    assert (tmp_path / "text").read_text() == "kept"
