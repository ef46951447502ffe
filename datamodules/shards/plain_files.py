"""Read files by their descriptor: a fifo cannot hang the process, and a file that shrinks is an error.

A mapped file that shrinks ends the process with SIGBUS and no word; a `pread` that comes back short does not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from datamodules.shards.issues import MalformedError, ShrunkError

_AT_ONCE = 2**20  # bytes hashed at a time


def open_plain(path: Path) -> int:
    """Open a file to read it, and nothing but a file.

    Returns:
        A descriptor, to be closed by the caller.

    Raises:
        OSError: It cannot be opened, or is a folder, fifo, device or socket.
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
    """Read `size` bytes from `start` on.

    Raises:
        ShrunkError: The file ends before.
        OSError: The disk fails.
    """
    data = os.pread(descriptor, size, start)
    while len(data) < size:  # one call gives 2 GiB at most
        more = os.pread(descriptor, size - len(data), start + len(data))
        if not more:
            raise ShrunkError(f"the file ends at byte {os.fstat(descriptor).st_size}")
        data += more
    return data


class PlainFile:
    """A file of the size it has now, read in pieces; as a context manager, closed at the end.

    Args:
        path: A regular file, or a link to one.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = open_plain(path)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, size: int) -> bytes:
        """Read `size` bytes from `start` on.

        Raises:
            ShrunkError: The file ends before.
            OSError: The disk fails.
        """
        return read_at(self._descriptor, start, size)

    def sha256(self) -> str:
        """Return the hash of the whole file in hexadecimal.

        Raises:
            ShrunkError: The file has become shorter.
            OSError: The disk fails.
        """
        digest = hashlib.sha256()
        for start in range(0, self.size, _AT_ONCE):
            digest.update(self.read(start, min(_AT_ONCE, self.size - start)))
        return digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def read_whole(path: Path, most: int) -> bytes:
    """Read a small file.

    Args:
        path: A regular file, or a link to one.
        most: Bytes that it may have.

    Raises:
        MalformedError: It has more.
        ShrunkError: It becomes shorter meanwhile.
        OSError: It cannot be read, or is not a regular file.
    """
    with PlainFile(path) as file:
        if file.size > most:
            raise MalformedError(f"has {file.size} bytes, more than the {most} that are read")
        return file.read(0, file.size)
