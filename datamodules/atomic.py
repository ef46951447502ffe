"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from magnet_train.errors import UserError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def partial_path(target: Path) -> Path:
    """Name the unfinished version of `target`: same folder, so that the last rename is one step."""
    return target.with_name(f".{target.name}.partial")


def publish(partial: Path, target: Path) -> None:
    """Give a finished file its name; a crash leaves the old one, the new one or none, never a half."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself has to reach the disk too
    finally:
        os.close(folder)


def write_atomically(target: Path, data: bytes) -> None:
    """Write `data` to `target` in one step.

    Raises:
        UserError: The disk is full or the folder cannot be written to; nothing is left behind.
    """
    partial = partial_path(target)
    try:
        with explain_disk_errors(target):
            partial.write_bytes(data)
            publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_disk_errors(target: Path) -> Iterator[None]:
    """Turn an OSError while writing `target` into one sentence.

    Raises:
        UserError: Names the file, and says whether room or permission is missing.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise UserError(
                f"no room on disk for {target}; free some space or write to another folder."
            ) from error
        raise UserError(
            f"cannot write {target} ({error.strerror}); check the folder and its permissions."
        ) from error
