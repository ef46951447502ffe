"""Let one `fit` at a time use the folder of a run."""

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
PATIENCE = 3.0  # seconds; the process before may be on its way out, a killed one's workers too
_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of some network filesystems
_held: set[int] = set()


def _let_go_in_child() -> None:
    """Close what a forked worker has inherited: a lock lasts as long as any process has it open."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Make the folder and hold it; afterwards it is as it was, but for what was written meanwhile.

    The kernel gives the lock back when the process dies, however it dies: a file that was left behind is no
    lock. It says which process holds the folder.

    Args:
        run: The run's folder.

    Raises:
        UserError: Another process holds it, or it cannot be made.
    """
    path = run / LOCK
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    with explain_disk_errors(path):
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _wait_for(path)
    if descriptor is None:
        raise UserError(
            f"{run} is in use by another fit ({_owner(path)}); wait until it ends, stop it, or give this run "
            "another folder by --run."
        )
    _held.add(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            if _is_at(path, descriptor):
                path.unlink()
        _held.discard(descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # it holds something
            for folder in made:
                folder.rmdir()


def _wait_for(path: Path) -> int | None:
    """Return the open file of a lock that is held, None if another process keeps it."""
    deadline = time.monotonic() + PATIENCE
    while (descriptor := _try(path)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return descriptor


def _try(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return None
                raise
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # its owner removed it between the two calls
    words = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    os.ftruncate(descriptor, 0)
    os.write(descriptor, words.encode())
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()[:200] or "which has only just begun"
    return "which is about to end"
