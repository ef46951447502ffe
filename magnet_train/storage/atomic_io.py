"""Atomic file writes: a file is complete or absent, whatever kills the process and wherever TMPDIR is."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from magnet_train.errors import UserError

_LONGEST_NAME = 255  # bytes, on common file systems
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `target` when the block succeeds, and is removed otherwise.

    Raises:
        UserError: The disk is full or the folder cannot be written to; an earlier `target` is unchanged.
    """
    partial = partial_path(target)
    try:
        with explain_disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
            publish(partial, target)
    finally:
        with contextlib.suppress(OSError):  # after a success there is no partial file
            partial.unlink()


def partial_path(target: Path) -> Path:
    """Return the name of the unfinished `target`, in the same folder, so that renaming it never copies."""
    name = f".{target.name}.partial"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.blake2b(os.fsencode(target.name), digest_size=16).hexdigest()}.partial"
    return target.with_name(name)


def publish(partial: Path, target: Path) -> None:
    """Rename a finished file to its name; after a crash, `target` is the old file, the new one or absent."""
    sync(partial)
    os.replace(partial, target)
    sync(target.parent)


def point_to(link: Path, target: Path) -> None:
    """Replace `link` by a relative symbolic link to `target`, atomically; raises `UserError` if that is impossible."""
    partial = partial_path(link)
    with explain_disk_errors(link):
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(target, link.parent))
        os.replace(partial, link)
        sync(link.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_partial_files(folder: Path) -> list[Path]:
    """Remove the partial files of killed processes from `folder`, and return their paths."""
    left = sorted(folder.glob(".*.partial"))
    for path in left:
        path.unlink(missing_ok=True)
    return left


@contextlib.contextmanager
def explain_disk_errors(target: Path) -> Iterator[None]:
    """Turn an OSError while writing `target` into a `UserError` that names the file and the cause."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = _os_error_within(error)
        if cause is None:
            raise
        if cause.errno in NO_ROOM:
            raise UserError(
                f"no room on disk for {target}; free some space or write to another folder."
            ) from error
        raise UserError(
            f"cannot write {target} ({cause.strerror or cause}); check the folder and its permissions."
        ) from error


def _os_error_within(error: BaseException | None) -> OSError | None:
    """Find the OSError behind another error: torch's zip writer raises a RuntimeError while handling it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
