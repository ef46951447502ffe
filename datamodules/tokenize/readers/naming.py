"""Find the audio file of a table's row, by its path or by an id that is the name of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.tokenize.readers.audio_file import SUFFIXES, AudioFile
from datamodules.tokenize.readers.clip_times import Times, take_times
from magnet_train.errors import UserError
from magnet_train.storage.plain_text import printable, unusable

MISSING = "missing"  # kind of reason in the report
_QUOTED = 80  # characters of a refused path in an error
_MAX_NAME_BYTES = 255
_AUDIOCAPS_SECONDS = 10.0  # length of its clips, which have a start only


def by_path(source: Path, place: str, name: str, times: Times, fields: Mapping[str, Any]) -> AudioFile:
    """Make the clip of a path in a table, with a problem if path or fields cannot be used."""
    problem = _path_problem(name)
    if problem:  # the place replaces the path, which later code could not use
        return AudioFile(source.with_name(f"{source.name} {place}"), place, *times, problem=problem)
    problem = unusable(fields)
    if problem:
        return AudioFile(source.parent / name, name, *times, problem=f"unreadable line: {problem}")
    return AudioFile(source.parent / name, name, *times, fields)


def _path_problem(name: str) -> str | None:
    quoted = printable(name if len(name) <= _QUOTED else f"{name[:_QUOTED]}...")
    last = name.rpartition("/")[2]
    if last.strip() in ("", ".", "..") or "\0" in name:
        return f"not a path: {quoted} names no file"
    if unusable(name):
        return f"not a path: {quoted} is not text"
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in name.split("/")):
        return f"not a path: {quoted} is longer than a file name can be"
    return None


def by_id(
    source: Path, where: str, record: dict[str, Any], columns: Sequence[str], stems: Mapping[str, Path]
) -> AudioFile:
    """Find the file of a row that has only an id, by the names that common downloaders give.

    Args:
        source: The table.
        where: Table and row, for messages.
        record: Fields of the row.
        columns: Those that hold ids.
        stems: Audio files by name without suffix.
    """
    ids = [str(record[name]) for name in columns if name in record]
    if not ids:
        raise UserError(f"{where} has no {' or '.join(columns)}; fill it in.")
    start, end = take_times(record, where)
    if "youtube_id" in record and start is not None and end is None:
        end = start + _AUDIOCAPS_SECONDS
    patterns = ["{id}"]
    if start is not None:
        patterns.insert(0, f"{{id}}_{start:g}")
        if end is not None:
            patterns = [f"[{{id}}]-[{start:g}-{end:g}]", f"{{id}}_{start:g}_{end:g}", *patterns]
    names = [pattern.format(id=id) for pattern in patterns for id in ids]
    path = next((stems[name] for name in names if name in stems), None)
    if path is not None:
        name = path.relative_to(source.parent).as_posix() if path.is_relative_to(source.parent) else path.name
        return AudioFile(path, name, start, end, record, by_id=True)
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    problem = f"{MISSING}: no {ids[0]} ({kinds}) in the folder of {source.name}"
    return AudioFile(source.parent / ids[0], ids[0], start, end, record, problem)
