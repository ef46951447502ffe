"""Read regular files by descriptor, so that a pipe cannot block and a file that shrinks is an error.

A memory-mapped file that shrinks kills the process with SIGBUS; a short `pread` can be reported.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import weakref
from pathlib import Path
from typing import Self

_HASH_BYTES = 2**20  # hashed at a time


class MalformedError(ValueError):
    """Bytes that format 1 does not allow; says what is wrong, and the caller adds where."""


class ShrunkError(MalformedError):
    """A file became shorter after it was opened."""


class PlainFile:
    """A regular file, or a link to one, and its size when it was opened; closed by `with`, or with the object.

    Raises:
        OSError: It cannot be opened, or is a folder, pipe, device or socket.
    """

    def __init__(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except ValueError as error:  # a NUL in the name
            raise OSError(errno.EINVAL, str(error)) from error
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
        self.size = status.st_size

    def read(self, start: int, size: int) -> bytes:
        """Read `size` bytes from offset `start`.

        Raises:
            ShrunkError: The file ends before.
            OSError: The disk fails.
        """
        data = b""
        while len(data) < size:  # one call returns at most 2 GiB
            more = os.pread(self._descriptor, size - len(data), start + len(data))
            if not more:
                raise ShrunkError(f"the file ends at byte {os.fstat(self._descriptor).st_size}")
            data += more
        return data

    def sha256(self) -> str:
        """Return the hash of the whole file in hexadecimal; raises as `read` does."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _HASH_BYTES):
            digest.update(self.read(start, min(_HASH_BYTES, self.size - start)))
        return digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def read_whole(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        MalformedError: It is larger, or became shorter meanwhile.
        OSError: It cannot be read, or is not a regular file.
    """
    with PlainFile(path) as file:
        if file.size > limit:
            raise MalformedError(f"has {file.size} bytes, more than the limit of {limit}")
        return file.read(0, file.size)
