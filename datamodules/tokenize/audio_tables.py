"""Read lists of audio: `.jsonl` with an object on each line, or `.csv`, including those of MusicCaps and AudioCaps.

MusicCaps: ytid, start_s, end_s, audioset_positive_labels, aspect_list, caption, ...
AudioCaps: audiocap_id, youtube_id, start_time, caption.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from magnet_train.errors import UserError, cannot_read
from magnet_train.storage.plain_text import decode_text, lines_of, parse_json, printable, read_text, unusable

SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".aifc", ".w64", ".caf", ".au"),
    *(".wave", ".rf64", ".oga", ".snd"),  # other names of these formats
)
_PATHS = ("path", "file", "file_name", "filename")
_IDS = ("ytid", "youtube_id", "audiocap_id")
_STARTS = ("start", "start_s", "start_time")  # seconds
_ENDS = ("end", "end_s", "end_time")
_CLOCK = re.compile(r"[0-9]{1,6}(:[0-9]{1,2}){1,2}(\.[0-9]*)?")  # 0:30, 1:02:03.5
_QUOTED = 80  # characters of a refused path in an error
_MAX_NAME_BYTES = 255
_MAX_UNPACKED_BYTES = 2**30  # of a gzipped list: some five million lines
_AUDIOCAPS_SECONDS = 10.0  # length of its clips, which have a start only


@dataclass(frozen=True)
class AudioFile:
    """One clip to tokenize: a file or a part of one."""

    path: Path
    name: str  # its path as listed
    start: float | None = None  # of the clip (s), None at the beginning
    end: float | None = None  # of the clip (s), None at the end
    fields: Mapping[str, Any] = field(default_factory=dict)  # the others of its line in the list
    problem: str | None = None  # why it cannot be used, as far as can be known without opening it
    by_id: bool = False  # found by the id of MusicCaps or AudioCaps: the whole video, or the clip cut from it
    key: str = ""  # its name in the shards: unique, and safe as a member of a tar; `list_audio` sets it

    @property
    def segment(self) -> str:
        """The part of the file in words, "" for the whole."""
        if self.start is None and self.end is None:
            return ""
        return f" from {self.start or 0:g} s" + ("" if self.end is None else f" to {self.end:g} s")

    @property
    def label(self) -> str:
        """Path and part, for reports."""
        return f"{self.path}{self.segment}"


def read_list(source: Path, audio_below: Callable[[Path], Iterable[str]]) -> Iterator[AudioFile]:
    """Read a `.csv` or `.jsonl`, which may be gzipped; `audio_below` lists a folder, for a list that has only ids.

    Raises:
        UserError: It is not in UTF-8, has more than 1 GiB, or a line cannot be understood.
    """
    is_zipped = source.suffix.lower() == ".gz"
    kind = Path(source.stem if is_zipped else source.name).suffix.lower()
    try:
        text = decode_text(_unpack(source)) if is_zipped else read_text(source, _MAX_UNPACKED_BYTES)
    except PermissionError as error:
        raise cannot_read(source, error) from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(
            f"{source} is unreadable ({error}); give a folder, or a .jsonl or .csv in UTF-8."
        ) from error
    yield from _read_csv(source, text, audio_below) if kind == ".csv" else _read_jsonl(source, text)


def _unpack(source: Path) -> bytes:
    with gzip.open(source) as file:
        data = file.read(_MAX_UNPACKED_BYTES + 1)
    if len(data) > _MAX_UNPACKED_BYTES:
        raise ValueError(f"it unpacks to more than {_MAX_UNPACKED_BYTES} bytes")
    return data


def _read_jsonl(source: Path, text: str) -> Iterator[AudioFile]:
    for number, line in enumerate(lines_of(text), start=1):
        where = f"{source} line {number}"
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error}); correct the line.") from error
        if not (isinstance(record, dict) and isinstance(record.get("path"), str) and record["path"].strip()):
            raise UserError(f"{where} has no path; write an object with path and text.")
        yield _listed(source, f"line {number}", record.pop("path"), record)


def _read_csv(source: Path, text: str, audio_below: Callable[[Path], Iterable[str]]) -> Iterator[AudioFile]:
    rows = _rows(source, text)
    columns = [name.strip() for name in next(rows, (0, [""]))[1]]
    duplicates = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if duplicates:
        raise UserError(f"{source} line 1 has two columns called {duplicates[0]}; rename one of them.")
    path_column = next((name for name in _PATHS if name in columns), None)
    if path_column is None and not any(name in columns for name in _IDS):
        raise UserError(
            f"{source} has columns {', '.join(filter(None, columns)) or 'none'}; one of "
            f"{', '.join((*_PATHS, *_IDS))} is needed, to find the audio file of each line."
        )
    stems = {}
    if path_column is None:
        stems = {PurePath(name).stem: source.parent / name for name in audio_below(source.parent)}
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
        yield _listed(source, f"line {number}", name, record)


def _rows(source: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Split a CSV into rows, each with the number of its first line; empty lines are skipped."""
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
            raise UserError(f"{source} line {line} is garbled ({error}); correct the line.") from error
        if row is None:
            return
        if row:
            yield line, row


def _record(columns: list[str], row: list[str], where: str) -> dict[str, Any]:
    """Return the non-empty fields of a row by column; refuse more fields than columns (an unquoted comma)."""
    cells = list(itertools.zip_longest(columns, row, fillvalue=""))
    if any(value.strip() for name, value in cells if not name):
        raise UserError(
            f"{where} has {len(row)} fields for {sum(map(bool, columns))} columns; put captions with commas into "
            "double quotes."
        )
    return {name: value for name, value in cells if name and value}


def _listed(source: Path, line: str, name: str, fields: dict[str, Any]) -> AudioFile:
    """Make an entry, with a problem if its path or its fields cannot be used."""
    start, end = _take_segment(fields, f"{source} {line}")
    problem = _path_problem(name)
    if problem:  # the line number replaces the path, which later code could not use
        return AudioFile(source.with_name(f"{source.name} {line}"), line, start, end, problem=problem)
    problem = unusable(fields)
    if problem:
        return AudioFile(source.parent / name, name, start, end, problem=f"unreadable line: {problem}")
    return AudioFile(source.parent / name, name, start, end, fields)


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


def _find_by_id(source: Path, record: dict[str, Any], stems: Mapping[str, Path], where: str) -> AudioFile:
    """Find the file of a line that has only an id, by the names that common downloaders give."""
    ids = [str(record[name]) for name in _IDS if name in record]
    if not ids:
        raise UserError(f"{where} has no {' or '.join(_IDS)}; fill it in.")
    start, end = _take_segment(record, where)
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
        name = path.relative_to(source.parent).as_posix()
        return AudioFile(path, name, start, end, record, by_id=True)
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    problem = f"missing: no {ids[0]} ({kinds}) in the folder of {source.name}"
    return AudioFile(source.parent / ids[0], ids[0], start, end, record, problem)


def _take_segment(record: dict[str, Any], where: str) -> tuple[float | None, float | None]:
    """Remove start and end of a clip from a line and return them, in seconds."""
    times: list[float | None] = []
    for names in (_STARTS, _ENDS):
        name = next((name for name in names if record.get(name) is not None), None)
        value = None if name is None else record.pop(name)
        try:
            times.append(None if value is None else _seconds(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: {name} is not a number of seconds; correct it.") from error
    start, end = times
    if (start or 0) < 0 or (end is not None and end <= (start or 0)):
        until = "the end" if end is None else f"{end:g} s"
        raise UserError(f"{where}: a clip cannot go from {start or 0:g} s to {until}; correct it.")
    return start, end


def _seconds(value: Any) -> float:
    """Parse a finite time in seconds: a number, or text as in a `.csv`, also as 1:02:03.5 or 0:30.

    Raises TypeError, ValueError or OverflowError without a message for anything else.
    """
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str) and ":" in value:
        if not _CLOCK.fullmatch(value.strip()):
            raise ValueError
        seconds, *others = (float(part) for part in value.split(":"))
        for part in others:
            seconds = seconds * 60 + part
        if max(others) >= 60:
            raise ValueError
        return seconds
    if isinstance(value, str) and "_" in value:  # Python would accept 1_000
        raise ValueError
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError
    return seconds


def _aspects(text: str) -> Any:
    """Parse MusicCaps' aspect_list, a Python list literal."""
    try:
        aspects = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(map(str, aspects)) if isinstance(aspects, (list, tuple)) else text
