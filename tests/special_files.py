"""A helper that creates files which a program must not open."""

import os
from pathlib import Path
import socket

KINDS = ("fifo", "socket", "device", "folder", "loop", "dangling")


def make_special_file(path: Path, kind: str) -> None:
    """Create a file of ``kind``, one of ``KINDS``, at ``path``."""
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "socket":
            # The path of a socket has at most about 100 bytes, so that it is made in its folder.
            before = os.getcwd()
            with socket.socket(socket.AF_UNIX) as made:
                os.chdir(path.parent)
                try:
                    made.bind(path.name)
                finally:
                    os.chdir(before)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case _:
            raise ValueError(kind)
