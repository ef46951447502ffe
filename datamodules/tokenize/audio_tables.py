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
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from datamodules.tokenize.folder_walk import walk_folder
from magnet_train.errors import UserError, cannot_read
from magnet_train.storage.plain_text import decode_text, lines_of, parse_json, printable, unusable

_NAMES = ".wav .flac .ogg .mp3 .opus .aiff .aif .aifc .w64 .caf .au"
_OTHER_NAMES = ".wave .rf64 .oga .snd"  # of the same formats
SUFFIXES = (*_NAMES.split(), *_OTHER_NAMES.split())
_PATHS = ("path", "file", "file_name", "filename")
_IDS = ("ytid", "youtube_id", "audiocap_id")
_STARTS = ("start", "start_s", "start_time")  # seconds
_ENDS = ("end", "end_s", "end_time")
_CLOCK = re.compile(r"[0-9]{1,6}(:[0-9]{1,2}){1,2}(\.[0-9]*)?")  # 0:30, 1:02:03.5
_SHOWN = 80  # characters of a refused path that are shown
_LONGEST_NAME = 255  # bytes of a file name
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
    zipped = source.suffix.lower() == ".gz"
    kind = Path(source.stem if zipped else source.name).suffix.lower()
    try:
        data = source.read_bytes()
        text = decode_text(gzip.decompress(data) if zipped else data)
    except PermissionError as error:
        raise cannot_read(source, error) from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(
            f"{source} is unreadable ({error}); give a folder, or a .jsonl or .csv in UTF-8."
        ) from error
    if kind == ".csv":
        yield from _read_csv(source, text)
    else:
        yield from _read_jsonl(source, text)


def _read_jsonl(source: Path, text: str) -> Iterator[Listed]:
    for number, line in enumerate(lines_of(text), start=1):
        where = f"{source} line {number}"
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON ({error}); mend the line.") from error
        if not (isinstance(record, dict) and isinstance(record.get("path"), str) and record["path"].strip()):
            raise UserError(f"{where} has no path; write an object with path and text.")
        name = record.pop("path")
        start, end = _take_segment(record, where)
        yield _listed(source, number, name, start, end, record)


def _read_csv(source: Path, text: str) -> Iterator[Listed]:
    rows = _rows(source, text)
    columns = [name.strip() for name in next(rows, (0, [""]))[1]]
    doubles = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if doubles:
        raise UserError(f"{source} line 1 has two columns called {doubles[0]}; rename one of them.")
    path_column = next((name for name in _PATHS if name in columns), None)
    if path_column is None and not any(name in columns for name in _IDS):
        raise UserError(
            f"{source} has columns {', '.join(filter(None, columns)) or 'none'}; one of "
            f"{', '.join((*_PATHS, *_IDS))} has to say which file a line is about."
        )
    stems = {} if path_column is not None else _files_by_stem(source.parent)
    for number, row in rows:
        where = f"{source} line {number}"
        record = _record(columns, row, where)
        if "aspect_list" in record:
            record["keywords"] = _aspects(record.pop("aspect_list"))
        if path_column is None:
            yield _find_by_id(source, record, stems, where)
            continue
        name = record.pop(path_column, None)
        if name is None:
            raise UserError(f"{where} has no {path_column}; fill it in.")
        start, end = _take_segment(record, where)
        yield _listed(source, number, name, start, end, record)


def _rows(source: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Split a CSV into rows, each with the number of the line where it begins; empty lines are none.

    Raises:
        UserError: A quote is never closed or something stands behind it, or a field is larger than csv takes.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(
                    f"{source} line {line} opens a quote that is never closed; close it, or double it inside a field."
                ) from error
            raise UserError(f"{source} line {line} is garbled ({error}); mend the line.") from error
        if row is None:
            return
        if row:
            yield line, row


def _record(columns: list[str], row: list[str], where: str) -> dict[str, Any]:
    """Name the fields of a row that are filled in.

    Raises:
        UserError: There are more of them than columns, as when a caption with a comma is not quoted.
    """
    surplus = row[len(columns) :]
    unnamed = [value for name, value in zip(columns, row, strict=False) if not name]
    if any(value.strip() for value in [*surplus, *unnamed]):
        raise UserError(
            f"{where} has {len(row)} fields for {sum(map(bool, columns))} columns; put captions with commas into "
            "double quotes."
        )
    return {name: value for name, value in zip(columns, row, strict=False) if name and value}


def _listed(
    source: Path, number: int, name: str, start: float | None, end: float | None, fields: dict[str, Any]
) -> Listed:
    """Make an entry of a line, with the reason if its path or its fields cannot be used."""
    problem = _path_problem(name)
    if problem:  # the line stands in for the path, which would break whoever looks there
        line = f"line {number}"
        return Listed(source.with_name(f"{source.name} {line}"), line, start, end, {}, problem)
    problem = unusable(fields)
    if problem:
        return Listed(source.parent / name, name, start, end, {}, f"unreadable line: {problem}")
    return Listed(source.parent / name, name, start, end, fields)


def _path_problem(name: str) -> str | None:
    shown = printable(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
    last = name.rpartition("/")[2]
    if last.strip() in ("", ".", "..") or "\0" in name:
        return f"not a path: {shown} names no file"
    if unusable(name):
        return f"not a path: {shown} is not text"
    if any(len(part.encode()) > _LONGEST_NAME for part in name.split("/")):
        return f"not a path: {shown} is longer than a file name can be"
    return None


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
    """Read a time: a number, or text as the columns of a `.csv` are, in seconds or as 1:02:03.5 or 0:30.

    Raises:
        TypeError, ValueError, OverflowError: It is no time, or none that is finite.
    """
    if isinstance(value, bool):
        raise TypeError(f"{value} is no number")
    if isinstance(value, str) and ":" in value:
        return _clock_seconds(value.strip())
    if isinstance(value, str) and "_" in value:  # which Python takes as 1_000
        raise ValueError(f"{value} is no number")
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is not finite")
    return seconds


def _clock_seconds(text: str) -> float:
    """Read minutes:seconds, or hours:minutes:seconds; what stands behind a colon is below 60."""
    if not _CLOCK.fullmatch(text):
        raise ValueError(f"{text} is no time")
    first, *others = (float(part) for part in text.split(":"))
    seconds = first
    for part in others:
        if part >= 60:
            raise ValueError(f"{text} is no time")
        seconds = seconds * 60 + part
    return seconds


def _aspects(text: str) -> Any:
    """Read MusicCaps' aspect_list, a list as Python writes it."""
    try:
        aspects = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(map(str, aspects)) if isinstance(aspects, (list, tuple)) else text
