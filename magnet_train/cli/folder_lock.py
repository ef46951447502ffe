"""One `fit` or `generate` at a time per folder: a file lock that the kernel releases with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import explain_disk_errors

LOCK = ".lock"
WAIT = 3.0  # seconds; an earlier process, or a worker of a killed one, may be about to exit
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # by some network filesystems
_held: set[int] = set()


def _close_locks() -> None:
    """Close inherited locks in a forked worker: a lock lasts as long as any process has its file open."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_locks)


@contextlib.contextmanager
def folder_lock(folder: Path, command: str, option: str) -> Iterator[None]:
    """Create a folder and lock it for this process; afterwards remove the lock, and new folders that are empty.

    The kernel releases the lock when the process dies, so a lock file left behind locks nothing. Its text names the
    owner.

    Raises:
        UserError: Another process of the command holds the lock (`option` names another folder), or the folder cannot
            be created.
    """
    path = folder / LOCK
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    deadline = time.monotonic() + WAIT
    try:
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            while (descriptor := _try_lock(path)) is None and time.monotonic() < deadline:
                time.sleep(0.1)
        if descriptor is None:
            raise UserError(
                f"{folder} is in use by another {command} ({_owner(path)}); wait until it ends, stop it, or choose "
                f"another folder with {option}."
            )
        _held.add(descriptor)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder may have been deleted
                if _is_open_file(path, descriptor):
                    path.unlink()
            _held.discard(descriptor)
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):  # not empty
            for each in created:
                each.rmdir()


def _try_lock(path: Path) -> int | None:
    """Return the descriptor of the locked file, or None if another process holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return None
                raise
        if _is_open_file(path, descriptor):
            break
        os.close(descriptor)  # the former owner removed the file between the two calls
    owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    os.ftruncate(descriptor, 0)
    os.write(descriptor, owner.encode())
    return descriptor


def _is_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()[:200] or "which has just started"
    return "which is about to end"
