"""Files that are either whole or absent, whatever kills the process and wherever TMPDIR lies."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from magnet_train.errors import UserError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that becomes `target` in one step when the block ends well, and vanishes otherwise.

    The unfinished file lies in the target's own folder, so that the last rename never turns into a copy.

    Raises:
        UserError: The disk is full or the folder cannot be written to; what was at `target` still stands.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        with _explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):  # there is none after a success
            partial.unlink()


def point_to(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target` in one step.

    Raises:
        UserError: The folder cannot be written to.
    """
    partial = link.with_name(f".{link.name}.partial")
    with _explained(link):
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(target, link.parent))
        os.replace(partial, link)
        sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk: a rename is lost with the power otherwise."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_partial_files(folder: Path) -> list[Path]:
    """Remove what killed writers left in `folder`, and return it."""
    left = sorted(folder.glob(".*.partial"))
    for path in left:
        path.unlink(missing_ok=True)
    return left


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = _os_error_within(error)
        if cause is None:
            raise
        before = f"; what was saved before in {target.parent} stands" if target.suffix == ".ckpt" else ""
        if cause.errno in _NO_ROOM:
            raise UserError(f"no room on disk for {target}{before}; free some space and go on.") from error
        raise UserError(
            f"cannot write {target} ({cause.strerror}){before}; check the folder and its permissions."
        ) from error


def _os_error_within(error: BaseException | None) -> OSError | None:
    """Find the OSError: torch's zip writer hides one behind a RuntimeError of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
