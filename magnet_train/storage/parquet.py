"""Read parquet tables in bounded memory: plain columns row by row, and files in the cells of one column, one at a time.

pyarrow, the extra `parquet`, reads a page at a time; nothing of a file is run.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from magnet_train.errors import UserError, cannot_read, first_line, require_extra
from magnet_train.storage.file_source import FileSource, StoredBytes

_BATCH = 256  # rows of plain columns
_BUFFER = 2**16  # bytes read at a time, instead of a whole column of a row group
_MOST_TEXT = 2**20  # bytes of a value; the fields of a clip may have no more
_MOST_AUDIO = 2**30  # bytes of a cell with a file
_MOST_COLUMNS = 1000


class Cell(NamedTuple):
    """Where in a table a file is stored."""

    table: Path
    column: str
    row: int  # from 0


class ParquetTable:
    """A parquet file.

    Raises:
        UserError: It cannot be read, or pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        require_extra("pyarrow", "parquet", f"{path}")
        import pyarrow.parquet

        self.path = path
        with self._explained():
            names = pyarrow.parquet.ParquetFile(path).schema
            if len(names) > _MOST_COLUMNS:
                raise UserError(f"{path} has more than {_MOST_COLUMNS} columns; keep those that are needed.")
            # as a dictionary, a text that many rows repeat is in memory once
            texts = [leaf.path for leaf in map(names.column, range(len(names))) if _is_one_text(leaf)]
            self._file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts, buffer_size=_BUFFER)
        fields = list(self._file.schema_arrow)
        self.columns = [field.name for field in fields if _is_plain(field.type)]
        self.file_columns = [field.name for field in fields if _holds_files(field.type)]
        self.other_columns = [f.name for f in fields if f.name not in (*self.columns, *self.file_columns)]

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the plain columns of each row, without those that are empty in it."""
        if not self.columns:
            yield from ({} for _ in range(len(self)))
            return
        with self._explained():
            row = 0
            for batch in self._file.iter_batches(_BATCH, columns=self.columns, use_threads=False):
                self._check_sizes(batch, row)
                row += batch.num_rows
                for record in batch.to_pylist():
                    yield {name: value for name, value in record.items() if _is_filled_in(value)}

    def _check_sizes(self, batch: Any, row: int) -> None:
        """Refuse what would not fit in memory as Python objects, in the rows from `row` on."""
        import pyarrow.compute

        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            largest = column.nbytes // _BATCH
            texts = getattr(column, "dictionary", ())
            if len(texts):
                largest = pyarrow.compute.max(pyarrow.compute.binary_length(texts)).as_py() or 0
            if largest > _MOST_TEXT:
                raise UserError(
                    f"{self.path}: column {name} has a value of {largest} bytes in rows {row} to "
                    f"{row + len(column) - 1}, more than {_MOST_TEXT}; shorten it or remove the column."
                )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, ValueError, MemoryError, NotImplementedError) as error:
            raise UserError(
                f"{self.path} is not a readable parquet ({first_line(error)}); copy it again."
            ) from error
        except OSError as error:
            raise cannot_read(self.path, error) from error


def read_cell(cell: Cell, name: str) -> FileSource:
    """Return the file in a cell: its bytes, called `name` in messages, or the path that the cell gives instead.

    Raises:
        UserError: The table cannot be read, or the cell is empty or larger than 1 GiB.
    """
    try:
        changed = os.stat(cell.table).st_mtime_ns
    except OSError as error:
        raise cannot_read(cell.table, error) from error
    value = _cells(cell.table, cell.column, changed).value(cell.row)
    record = value if isinstance(value, dict) else {"bytes": value}
    if data := record.get("bytes"):
        if len(data) > _MOST_AUDIO:
            raise UserError(f"{name} has {len(data)} bytes, more than {_MOST_AUDIO}; split it.")
        return StoredBytes(name, data)
    if path := record.get("path"):
        return cell.table.parent / str(path)
    raise UserError(f"{name} is empty; fill in column {cell.column} of {cell.table} or remove the row.")


class _Cells:
    """One column of a table, read row by row; going back restarts at the beginning of the row group."""

    def __init__(self, path: Path, column: str) -> None:
        self._table, self._column = ParquetTable(path), column
        self._lock = threading.Lock()
        metadata = self._table._file.metadata
        counts = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = [0]
        for count in counts:
            self._starts.append(self._starts[-1] + count)
        self._next, self._end = 0, 0  # the next row, and the end of its group
        self._rows: Iterator[Any] = iter(())

    def value(self, row: int) -> Any:
        """Return the value of a row; raises `UserError`."""
        with self._lock, self._table._explained():
            if not self._next <= row < self._end:
                self._open_group(row)
            while True:
                batch = next(self._rows, None)
                if batch is None:
                    raise ValueError(f"row {row} is missing")
                self._next += 1
                if self._next > row:
                    return batch.column(0)[0].as_py()

    def _open_group(self, row: int) -> None:
        group = next((g for g, end in enumerate(self._starts[1:]) if row < end), None)
        if group is None:
            raise ValueError(f"row {row} is missing")
        self._next, self._end = self._starts[group], self._starts[group + 1]
        self._rows = self._table._file.iter_batches(
            1, row_groups=[group], columns=[self._column], use_threads=False
        )


@lru_cache(maxsize=4)  # tables are read one after another
def _cells(path: Path, column: str, changed: int) -> _Cells:
    """Return the cells of a table that was last `changed` then, so that a replaced table is opened again."""
    return _Cells(path, column)


def _is_one_text(leaf: Any) -> bool:
    """Whether a leaf column has at most one text in a row."""
    return str(leaf.logical_type) == "String" and "." not in leaf.path


def _is_plain(kind: Any) -> bool:
    """Whether a column holds numbers, texts or lists of texts."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return _is_text(kind.value_type) or types.is_null(kind.value_type)
    is_number = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return _is_text(kind) or is_number or types.is_null(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _holds_files(kind: Any) -> bool:
    """Whether a column holds the bytes of files: alone, or as {bytes, path} of the datasets library."""
    from pyarrow import types

    if types.is_struct(kind):
        names = [kind.field(place).name for place in range(kind.num_fields)]
        return "bytes" in names and _holds_files(kind.field(names.index("bytes")).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_filled_in(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value != [] and not (isinstance(value, float) and not math.isfinite(value))
