"""Open tables: `.csv` and `.tsv`, `.jsonl` and `.json`, each gzipped or not, and `.parquet`."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from magnet_train.errors import UserError, cannot_read
from magnet_train.storage.parquet import ParquetTable
from magnet_train.storage.plain_text import decode_text, lines_of, parse_json, read_text

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_MAX_UNPACKED_BYTES = 2**30  # of a gzipped list: some five million lines


class Row(NamedTuple):
    """A row of a table."""

    place: str  # "line 3"
    fields: dict[str, Any]  # those that are filled in


@dataclass(frozen=True)
class Table:
    """An open table."""

    path: Path
    kind: str  # "csv", "tsv", "jsonl", "json" or "parquet"
    columns: Sequence[str] | None  # None where each row has its own names
    rows: Iterator[Row]
    file_columns: Sequence[str] = ()  # of a parquet, those that hold files
    other_columns: Sequence[str] = ()  # of a parquet, those that are not read


def open_table(path: Path) -> Table:
    """Open a table by its suffix; any other than those above is read as `.jsonl`.

    Raises:
        UserError: It cannot be read, is not in UTF-8 or has more than 1 GiB; while iterating, a row is malformed.
    """
    is_zipped = path.suffix.lower() == ".gz"
    kind = Path(path.stem if is_zipped else path.name).suffix.lower().removeprefix(".")
    if kind == "parquet":
        table = ParquetTable(path)
        rows = (Row(f"row {number}", fields) for number, fields in enumerate(table.rows()))
        return Table(path, kind, table.columns, rows, table.file_columns, table.other_columns)
    text = _read(path, is_zipped)
    if kind in ("csv", "tsv"):
        lines = _csv_lines(path, text) if kind == "csv" else _tsv_lines(text)
        return _delimited(path, kind, lines)
    if kind == "json" and (samples := _samples(path, text)) is not None:
        return Table(path, kind, None, _sample_rows(path, samples))
    return Table(path, "jsonl", None, _jsonl_rows(path, text))


def _read(path: Path, is_zipped: bool) -> str:
    try:
        return decode_text(_unpack(path)) if is_zipped else read_text(path, _MAX_UNPACKED_BYTES)
    except PermissionError as error:
        raise cannot_read(path, error) from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        kinds = ", ".join(TABLE_SUFFIXES)
        raise UserError(
            f"{path} is unreadable ({error}); give a folder, or a table in UTF-8 ({kinds})."
        ) from error


def _unpack(path: Path) -> bytes:
    with gzip.open(path) as file:
        data = file.read(_MAX_UNPACKED_BYTES + 1)
    if len(data) > _MAX_UNPACKED_BYTES:
        raise ValueError(f"it unpacks to more than {_MAX_UNPACKED_BYTES} bytes")
    return data


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            where = f"line {number}"
            try:
                record = parse_json(line)
            except ValueError as error:
                raise UserError(f"{path} {where} is not JSON ({error}); correct the line.") from error
            yield _object_row(path, where, record)


def _samples(path: Path, text: str) -> list[Any] | None:
    """Return the objects of a JSON array or of `samples`; None for a file that may have an object on each line."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    if isinstance(value, dict) and isinstance(value.get("samples"), list):
        value = value["samples"]
    if isinstance(value, list):
        return value
    if len(lines_of(text.strip())) > 1:
        raise UserError(
            f"{path} is one object without samples; write a list of objects, or one object with them in samples."
        )
    return None


def _sample_rows(path: Path, samples: list[Any]) -> Iterator[Row]:
    for number, record in enumerate(samples, start=1):
        yield _object_row(path, f"sample {number}", record)


def _object_row(path: Path, where: str, record: Any) -> Row:
    if not isinstance(record, dict):
        raise UserError(f"{path} {where} has no path; write an object with path and text.")
    return Row(where, record)


def _delimited(path: Path, kind: str, lines: Iterator[tuple[int, list[str]]]) -> Table:
    columns = [name.strip() for name in next(lines, (0, [""]))[1]]
    if not columns[0] and "track" in columns:  # FMA: groups, names, and a line with track_id alone
        names = next(lines, (0, []))[1]
        first = next(lines, (0, [""]))[1][:1]
        columns = first + [f"{group}.{name}" for group, name in zip(columns[1:], names[1:], strict=False)]
    duplicates = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if duplicates:
        raise UserError(f"{path} line 1 has two columns called {duplicates[0]}; rename one of them.")
    rows = (Row(f"line {number}", _record(columns, row, f"{path} line {number}")) for number, row in lines)
    return Table(path, kind, [name for name in columns if name], rows)


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Split a CSV into rows, each with the number of its first line; empty lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(
                    f"{path} line {line} opens a quote that is never closed; close it, or double it inside a field."
                ) from error
            raise UserError(f"{path} line {line} is garbled ({error}); correct the line.") from error
        if row is None:
            return
        if row:
            yield line, row


def _tsv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Split at tabs; a field may be in double quotes, and a quote within one is a character."""
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            yield number, [_unquoted(cell) for cell in line.split("\t")]


def _unquoted(cell: str) -> str:
    is_quoted = len(cell) > 1 and cell.startswith('"') and cell.endswith('"')
    return cell[1:-1].replace('""', '"') if is_quoted else cell


def _record(columns: list[str], row: list[str], where: str) -> dict[str, Any]:
    """Return the non-empty fields of a row by column; refuse more fields than columns (an unquoted comma)."""
    if columns[-1] == "TAGS" and len(row) > len(columns):  # MTG-Jamendo: the rest of the line
        row = [*row[: len(columns) - 1], "\t".join(row[len(columns) - 1 :])]
    cells = list(itertools.zip_longest(columns, row, fillvalue=""))
    if any(value.strip() for name, value in cells if not name):
        raise UserError(
            f"{where} has {len(row)} fields for {sum(map(bool, columns))} columns; put captions with commas into "
            "double quotes."
        )
    return {name: value for name, value in cells if name and value}
