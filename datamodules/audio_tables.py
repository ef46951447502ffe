"""Lists of audio: a `.jsonl` with an object on each line, or a `.csv`, those of MusicCaps and AudioCaps included.

MusicCaps: ytid, start_s, end_s, audioset_positive_labels, aspect_list, caption, ...
AudioCaps: audiocap_id, youtube_id, start_time, caption.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from datamodules.captions import load_json
from datamodules.folder_walk import walk_folder
from magnet_train.errors import UserError, cannot_read

SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    ".mp3",
    ".opus",
    ".aiff",
    ".aif",
    ".aifc",
    ".w64",
    ".caf",
    ".au",
    ".wave",
    ".rf64",
    ".oga",
    ".snd",
)
_PATHS = ("path", "file", "file_name", "filename")
_IDS = ("ytid", "youtube_id", "audiocap_id")
_STARTS = ("start", "start_s", "start_time")  # seconds
_ENDS = ("end", "end_s", "end_time")
_AUDIOCAPS_SECONDS = 10.0  # its clips are AudioSet's and have a start only


class Listed(NamedTuple):
    """One line of a list.

    Args:
        path: The audio file.
        name: As it stands in the list.
        start: Where its clip starts (s), None at the beginning.
        end: Where its clip ends (s), None at the end.
        fields: Everything else.
        problem: Why it cannot be used, as far as the list shows.
        by_id: Found by the id of MusicCaps or AudioCaps: it may be the video, or its clip cut already.
    """

    path: Path
    name: str
    start: float | None
    end: float | None
    fields: dict[str, Any]
    problem: str | None = None
    by_id: bool = False


def read_list(source: Path) -> Iterator[Listed]:
    """Read a `.csv`, or a `.jsonl` that may be gzipped.

    Raises:
        UserError: It is not in UTF-8, or a line cannot be understood.
    """
    try:
        data = source.read_bytes()
        text = (gzip.decompress(data) if source.suffix == ".gz" else data).decode("utf-8-sig")
    except PermissionError as error:
        raise cannot_read(source, error) from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{source} is unreadable ({error}); give a folder, or a .jsonl or .csv in UTF-8."
        ) from error
    if source.suffix == ".csv":
        yield from _read_csv(source, text)
    else:
        yield from _read_jsonl(source, text)


def _read_jsonl(source: Path, text: str) -> Iterator[Listed]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = load_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source} line {number} is no JSON ({error}); mend the line.") from error
        if not (isinstance(record, dict) and isinstance(record.get("path"), str) and record["path"].strip()):
            raise UserError(f"{source} line {number} has no path; write an object with path and text.")
        name = record.pop("path")
        start, end = _take_segment(record, f"{source} line {number}")
        yield Listed(source.parent / name, name, start, end, record)


def _read_csv(source: Path, text: str) -> Iterator[Listed]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    columns = rows.fieldnames or []
    path_column = next((name for name in _PATHS if name in columns), None)
    if path_column is None and not any(name in columns for name in _IDS):
        raise UserError(
            f"{source} has columns {', '.join(columns) or 'none'}; one of {', '.join((*_PATHS, *_IDS))} "
            "has to say which file a line is about."
        )
    stems = {} if path_column is not None else _files_by_stem(source.parent)
    try:
        for row in rows:
            where = f"{source} line {rows.line_num}"
            record: dict[str, Any] = {name: value for name, value in row.items() if name and value}
            if "aspect_list" in record:
                record["keywords"] = _aspects(record.pop("aspect_list"))
            if path_column is None:
                yield _find_by_id(source, record, stems, where)
                continue
            name = record.pop(path_column, None)
            if name is None:
                raise UserError(f"{where} has no {path_column}; fill it in.")
            start, end = _take_segment(record, where)
            yield Listed(source.parent / name, name, start, end, record)
    except csv.Error as error:
        raise UserError(f"{source} line {rows.line_num} is garbled ({error}); mend the line.") from error


def _find_by_id(source: Path, record: dict[str, Any], stems: Mapping[str, Path], where: str) -> Listed:
    """Find the file of a line that only has an id, by the names that downloaders give."""
    ids = [str(record[name]) for name in _IDS if name in record]
    if not ids:
        raise UserError(f"{where} has no {' or '.join(_IDS)}; fill it in.")
    start, end = _take_segment(record, where)
    if "youtube_id" in record and start is not None and end is None:
        end = start + _AUDIOCAPS_SECONDS
    names = ids
    if start is not None:
        names = [f"{id}_{start:g}" for id in ids] + names
    if start is not None and end is not None:
        names = (
            [f"[{id}]-[{start:g}-{end:g}]" for id in ids] + [f"{id}_{start:g}_{end:g}" for id in ids] + names
        )
    for name in names:
        if name in stems:
            path = stems[name]
            return Listed(path, path.relative_to(source.parent).as_posix(), start, end, record, by_id=True)
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    problem = f"missing: no {ids[0]} ({kinds}) in the folder of {source.name}"
    return Listed(source.parent / ids[0], ids[0], start, end, record, problem)


def _files_by_stem(folder: Path) -> dict[str, Path]:
    names = [found.name for found in walk_folder(folder, SUFFIXES) if found.problem is None]
    return {PurePath(name).stem: folder / name for name in names}


def _take_segment(record: dict[str, Any], where: str) -> tuple[float | None, float | None]:
    """Remove start and end of a clip from a line and return them, in seconds."""
    times: list[float | None] = []
    for names in (_STARTS, _ENDS):
        name = next((name for name in names if record.get(name) is not None), None)
        value = None if name is None else record.pop(name)
        try:
            times.append(None if value is None else _seconds(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: {name} is no number of seconds; mend it.") from error
    start, end = times
    if (start or 0) < 0 or (end is not None and end <= (start or 0)):
        until = "the end" if end is None else f"{end:g} s"
        raise UserError(f"{where}: a clip cannot go from {start or 0:g} s to {until}; mend it.")
    return start, end


def _seconds(value: Any) -> float:
    """Read a time; the columns of a `.csv` are text.

    Raises:
        TypeError, ValueError, OverflowError: It is no number, or none that is finite.
    """
    if isinstance(value, bool):
        raise TypeError(f"{value} is no number")
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is not finite")
    return seconds


def _aspects(text: str) -> Any:
    """Read MusicCaps' aspect_list, a list as Python writes it."""
    try:
        aspects = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(map(str, aspects)) if isinstance(aspects, (list, tuple)) else text
