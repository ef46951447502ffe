"""A file to read: a path, or bytes in memory that came out of another file."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class StoredBytes:
    """The content of a file that lies within another, such as a cell of a parquet."""

    name: str  # stands for the path in messages
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


FileSource = str | Path | StoredBytes


def open_source(source: FileSource) -> IO[bytes]:
    """Open it in binary for reading; raises `OSError`."""
    return io.BytesIO(source.data) if isinstance(source, StoredBytes) else open(source, "rb")


def size_of(source: FileSource) -> int:
    """Return its size in bytes; raises `OSError`."""
    return len(source.data) if isinstance(source, StoredBytes) else os.path.getsize(source)
