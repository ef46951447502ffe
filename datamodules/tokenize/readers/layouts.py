"""Layouts of tables: the columns by which each is recognised, and how a row becomes a clip.

A row names its file by a path relative to the table, has an id that is the name of a file, or holds the file (parquet).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from datamodules.tokenize.readers.audio_file import AudioFile, Listing
from datamodules.tokenize.readers.clip_times import Times, take_offset, take_times
from datamodules.tokenize.readers.naming import MISSING, by_id, by_path
from datamodules.tokenize.readers.tables import Row, Table, open_table
from magnet_train.errors import UserError
from magnet_train.storage.parquet import Cell
from magnet_train.storage.plain_text import printable, unusable

Fields = dict[str, Any]
Names = Callable[[Path], Iterable[str]]  # the audio files below a folder


class UnknownLayoutError(UserError):
    """No column of a table can name the audio."""


class Layout(NamedTuple):
    """How the rows of a table name their audio."""

    name: str
    columns: tuple[str, ...]  # the first one that a table has names the files
    needs: str | None = None  # a second column that the layout requires
    kind: str | None = None  # `Table.kind` that it requires, None for any
    is_id: bool = False  # whether `columns` hold ids instead of paths
    lists_more: bool = (
        False  # whether few users have all files of its table; rows without one are only counted
    )
    times: Callable[[Fields, str], Times] = take_times
    convert: Callable[[Fields], Fields] = dict  # to our names of fields
    # (folder of the table, path in the row, fields) -> path relative to the folder.
    locate: Callable[[Path, str, Fields], str] = lambda folder, name, fields: name


def _captioned(record: Fields) -> Fields:
    aspects = record.pop("aspect_list", None)  # of MusicCaps
    return record if aspects is None else {**record, "keywords": _list_literal(aspects)}


def _list_literal(text: Any) -> Any:
    """Parse a Python list, as in MusicCaps and FMA; anything else is returned as it is."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text
    return list(map(str, values)) if isinstance(values, (list, tuple)) else text


def _jamendo(record: Fields) -> Fields:
    """Split tags such as genre---rock into fields, each with a list."""
    fields: Fields = {name.lower(): value for name, value in record.items() if name != "TAGS"}
    for tag in str(record.get("TAGS", "")).split("\t"):
        kind, _, value = tag.partition("---")
        if value:
            fields.setdefault("moods" if kind == "mood/theme" else kind, []).append(value)
    return fields


def _jamendo_file(folder: Path, name: str, _: Fields) -> str:
    """Return the path, or that of the small edition of the set, 48/948.low.mp3, if it is there instead."""
    low = PurePath(name).with_suffix(".low.mp3").as_posix() if PurePath(name).name else name
    return low if not (folder / name).exists() and (folder / low).exists() else name


_FMA = {
    "track.title": "title",
    "artist.name": "artist",
    "album.title": "album",
    "track.genre_top": "genre",
    "track.tags": "keywords",
    "track.license": "license",
    "set.split": "split",
    "set.subset": "subset",
}


def _fma(record: Fields) -> Fields:
    fields = {ours: _list_literal(record[theirs]) for theirs, ours in _FMA.items() if theirs in record}
    kept = {name: value for name, value in fields.items() if value != []}
    return {"track_id": str(record.get("track_id", "")).zfill(6), **kept}


def _ace_step(record: Fields) -> Fields:
    names = {"keyscale": "key", "timesignature": "time_signature"}
    return {names.get(name, name): value for name, value in record.items() if value not in (None, "", "N/A")}


def _ace_step_file(folder: Path, name: str, fields: Fields) -> str:
    """Return the path, or the file name if the path is of another machine and the file lies beside the table."""
    short = fields.get("filename")
    is_beside = isinstance(short, str) and PurePath(short).name == short and (folder / short).exists()
    return str(short) if is_beside and not (folder / name).exists() else name


LAYOUTS = (  # the first that fits is taken
    Layout("an MTG-Jamendo table", ("PATH",), "TRACK_ID", convert=_jamendo, locate=_jamendo_file),
    Layout("FMA's tracks.csv", ("track_id",), "track.title", is_id=True, lists_more=True, convert=_fma),
    Layout(
        "ACE-Step samples", ("audio_path", "filename"), kind="json", convert=_ace_step, locate=_ace_step_file
    ),
    Layout("a NeMo manifest", ("audio_filepath",), times=take_offset),
    Layout("an OmniVoice manifest", ("audio_path",), times=take_offset),
    Layout("a list", ("path", "file", "file_name", "filename", "audio"), convert=_captioned),
    Layout("MusicCaps or AudioCaps", ("ytid", "youtube_id", "audiocap_id"), is_id=True, convert=_captioned),
)
_NAMES = [name for layout in reversed(LAYOUTS) if layout.needs is None for name in layout.columns]
_NEEDED = ", ".join(dict.fromkeys(sorted(_NAMES, key=lambda name: name.endswith("id"))))


def read_table(source: Path, audio_below: Names) -> Listing:
    """Read a table; `audio_below` lists a folder, for a table that has only ids.

    Raises:
        UnknownLayoutError: No column can name the audio.
        UserError: It cannot be read, two columns name the audio, or a row cannot be understood.
    """
    table = open_table(source)
    first = next(table.rows, None)
    if first is None and table.columns is None:
        raise UserError(f"{source} has no lines; write one with path and text for each file.")
    rows = table.rows if first is None else chain([first], table.rows)
    column = _file_column(table)
    unread = ", ".join(table.other_columns)
    notes = [f"not read: columns {unread} of {source.name}"] if unread else []
    if column is not None:
        name, files = "a parquet", [_in_cell(table, column, number, row) for number, row in enumerate(rows)]
    else:
        layout, column = _choose(table, first)
        name, files = layout.name, list(_files(table, rows, layout, column, audio_below))
        if layout.lists_more:
            found = [file for file in files if not (file.problem or "").startswith(MISSING)]
            if found and len(found) < len(files):
                notes.append(
                    f"not used: rows of {source.name} without a file here ({len(files) - len(found)})"
                )
                files = found
    if not files:
        raise UserError(f"{source} has no lines; write one with path and text for each file.")
    columns = dict.fromkeys([*(table.columns or ()), *(name for file in files for name in file.fields)])
    columns.pop(column, None)
    return Listing(files, f"{name} (files in column {printable(column)})", tuple(columns), notes)


def _choose(table: Table, first: Row | None) -> tuple[Layout, str]:
    """Return the layout of a table and its column that names the files."""
    fields = first.fields if first else {}
    names = list(fields if table.columns is None else table.columns)
    where = f"{table.path} {first.place if first else 'line 1'}"
    for layout in LAYOUTS:
        column = next((name for name in layout.columns if name in names), None)
        if column and layout.kind in (None, table.kind) and layout.needs in (None, *names):
            if not (layout.is_id or layout.kind):
                _require_one_file(where, fields, column)
            return layout, column
    listed = ", ".join(map(printable, names)) or "none"
    if table.columns is None:
        raise UnknownLayoutError(f"{where} has no path; of its fields {listed} one has to be {_NEEDED}.")
    files = "a column with files, or " if table.kind == "parquet" else ""
    raise UnknownLayoutError(
        f"{table.path} has columns {listed}; {files}one of {_NEEDED} is needed, to find the audio file of each line."
    )


def _require_one_file(where: str, fields: Fields, column: str) -> None:
    """Refuse a row that names different files in two columns; a name without its folder is the same file."""
    mine = fields.get(column)
    for name in (name for name in _NAMES if not name.endswith("id")):
        other = fields.get(name)
        if not (isinstance(mine, str) and isinstance(other, str) and other.strip()):
            continue
        if PurePath(other).name != PurePath(mine).name:
            raise UserError(
                f"{where} names two files, {printable(mine)} in {column} and {printable(other)} in {name}; rename one "
                "of the columns."
            )


def _file_column(table: Table) -> str | None:
    """Return the column of a parquet that holds the files, None if its files are named instead."""
    found = table.file_columns
    if "audio" in found:
        return "audio"
    if len(found) > 1:
        raise UserError(
            f"{table.path} has files in {', '.join(found)}; rename the column with the sound to audio."
        )
    return found[0] if found else None


def _in_cell(table: Table, column: str, number: int, row: Row) -> AudioFile:
    """Make the clip of a row that holds its file."""
    times = take_times(row.fields, f"{table.path} {row.place}")
    problem = unusable(row.fields)
    return AudioFile(
        table.path / str(number),
        f"{table.path.name}/{number}",
        *times,
        {} if problem else _captioned(row.fields),
        f"unreadable line: {problem}" if problem else None,
        cell=Cell(table.path, column, number),
    )


def _files(
    table: Table, rows: Iterable[Row], layout: Layout, column: str, audio_below: Names
) -> Iterator[AudioFile]:
    """Yield the clip of each row, by its path or its id."""
    source, stems = table.path, dict[str, Path]()
    if layout.is_id:
        # FMA has its tables in a folder beside those with its audio
        root = source.parent.parent if source.parent.name == "fma_metadata" else source.parent
        stems = {PurePath(name).stem: root / name for name in audio_below(root)}
    for row in rows:
        fields, where = row.fields, f"{source} {row.place}"
        if layout.is_id:
            yield by_id(source, where, layout.convert(fields), layout.columns, stems)
            continue
        name = fields.pop(column, None)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where} has no {column}; fill it in.")
        name = layout.locate(source.parent, name, fields)
        yield by_path(source, row.place, name, layout.times(fields, where), layout.convert(fields))
