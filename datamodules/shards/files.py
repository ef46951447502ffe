"""Read regular files by descriptor, so that a pipe cannot block and a file that shrinks is an error.

A memory-mapped file that shrinks kills the process with SIGBUS; a short `pread` can be reported.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

_HASH_BYTES = 2**20  # hashed at a time


class MalformedError(ValueError):
    """Bytes that format 1 does not allow; says what is wrong, and the caller adds where."""


class ShrunkError(MalformedError):
    """A file became shorter after it was opened."""


def open_regular(path: Path) -> int:
    """Open a regular file for reading.

    Returns:
        A descriptor, to be closed by the caller.

    Raises:
        OSError: It cannot be opened, or is a folder, pipe, device or socket.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
    return descriptor


def read_at(descriptor: int, start: int, size: int) -> bytes:
    """Read `size` bytes from offset `start`.

    Raises:
        ShrunkError: The file ends before.
        OSError: The disk fails.
    """
    data = os.pread(descriptor, size, start)
    while len(data) < size:  # one call returns at most 2 GiB
        more = os.pread(descriptor, size - len(data), start + len(data))
        if not more:
            raise ShrunkError(f"the file ends at byte {os.fstat(descriptor).st_size}")
        data += more
    return data


class PlainFile:
    """A regular file and its size when it was opened; a context manager that closes it.

    Args:
        path: A regular file, or a link to one.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = open_regular(path)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, size: int) -> bytes:
        """Read `size` bytes from offset `start`; raises as `read_at` does."""
        return read_at(self._descriptor, start, size)

    def sha256(self) -> str:
        """Return the hash of the whole file in hexadecimal; raises as `read_at` does."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _HASH_BYTES):
            digest.update(self.read(start, min(_HASH_BYTES, self.size - start)))
        return digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def read_whole(path: Path, limit: int) -> bytes:
    """Read a small file.

    Args:
        path: A regular file, or a link to one.
        limit: Largest size in bytes.

    Raises:
        MalformedError: It is larger.
        ShrunkError: It became shorter meanwhile.
        OSError: It cannot be read, or is not a regular file.
    """
    with PlainFile(path) as file:
        if file.size > limit:
            raise MalformedError(f"has {file.size} bytes, more than the limit of {limit}")
        return file.read(0, file.size)
