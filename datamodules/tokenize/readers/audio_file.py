"""A clip to tokenize, as the readers list it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magnet_train.storage.file_source import FileSource
from magnet_train.storage.parquet import Cell, read_cell

# Read by libsndfile; those after .au are other names of the same formats.
SUFFIXES = (
    ".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".aifc", ".w64", ".caf", ".au", ".wave", ".rf64", ".oga",
    ".snd",
)  # fmt: skip
# Read with the extra `av`.
AV_SUFFIXES = (
    ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".aac", ".webm", ".weba", ".mka", ".mkv", ".wma", ".asf",
)  # fmt: skip


@dataclass(frozen=True)
class AudioFile:
    """One clip to tokenize: a file or a part of one."""

    path: Path  # of a row of a parquet: TABLE/ROW
    name: str  # its path as listed
    start: float | None = None  # of the clip (s), None at the beginning
    end: float | None = None  # of the clip (s), None at the end
    fields: Mapping[str, Any] = field(default_factory=dict)  # the remaining fields of its row
    problem: str | None = None  # why it cannot be used, if that shows without opening it
    by_id: bool = False  # found by the id of MusicCaps or AudioCaps: the whole video, or the clip cut from it
    key: str = ""  # its name in the shards: unique, and safe as a member of a tar; `list_audio` sets it
    cell: Cell | None = None  # where a parquet holds it, None for a file of its own

    @property
    def segment(self) -> str:
        """The part of the file in words, "" for the whole."""
        if self.start is None and self.end is None:
            return ""
        return f" from {self.start or 0:g} s" + ("" if self.end is None else f" to {self.end:g} s")

    @property
    def is_whole(self) -> bool:
        """Whether it is a file from beginning to end."""
        return self.start is None and self.end is None

    @property
    def label(self) -> str:
        """Path and part, for reports."""
        return f"{self.path}{self.segment}"

    @property
    def on_disk(self) -> Path:
        """The file whose size and time change with its audio."""
        return self.path if self.cell is None else self.cell.table

    def source(self) -> FileSource:
        """Return what to read: the path, or the bytes of its row; raises `UserError` if they cannot be read."""
        return self.path if self.cell is None else read_cell(self.cell, str(self.path))


@dataclass(frozen=True)
class Listing:
    """The clips of a folder or list, and how it was read."""

    files: Sequence[AudioFile]
    layout: str  # "a list (files in column path)"
    columns: Sequence[str] = ()  # of a list, without those that name the file and its part
    notes: Sequence[str] = ()  # sentences on what was not read
