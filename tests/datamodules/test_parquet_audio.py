"""Parquet tables: with audio in their cells, as the datasets library writes them, or with paths."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from datamodules.tokenize.audio_files import find_audio, list_audio
from datamodules.tokenize.sources import fingerprint, take_stats
from magnet_train.audio import audio_seconds, read_audio
from magnet_train.errors import UserError
from magnet_train.storage.file_source import StoredBytes
from magnet_train.storage.parquet import Cell, ParquetTable, read_cell


def wav(seconds: float = 0.1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(round(8_000 * seconds), 0.1), 8_000, format="WAV")
    return file.getvalue()


def write(path: Path, columns: dict[str, list[Any]], rows_per_group: int = 2, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group, **options)
    return path


def dataset(count: int = 5) -> dict[str, list[Any]]:
    """Row N has N + 1 tenths of a second."""
    return {
        "audio": [{"bytes": wav((row + 1) / 10), "path": f"{row}.wav"} for row in range(count)],
        "caption": [f"caption {row}" for row in range(count)],
        "bpm": [None, *range(90, 89 + count)],
        "tags": [["a", "b"] if row % 2 else [] for row in range(count)],
        "weight": [float("nan"), *[0.5] * (count - 1)],
    }


def test_audio_of_the_datasets_library(tmp_path: Path) -> None:
    listing = find_audio(write(tmp_path / "train.parquet", dataset()))
    assert listing.layout == "a parquet (files in column audio)"
    assert listing.columns == ("caption", "bpm", "tags", "weight")
    assert [file.name for file in listing.files] == [f"train.parquet/{row}" for row in range(5)]
    assert listing.files[0].fields == {"caption": "caption 0"}
    assert listing.files[1].fields == {"caption": "caption 1", "bpm": 90, "tags": ["a", "b"], "weight": 0.5}
    for row in (0, 1, 2, 1, 4, 0, 3):  # back and forth between row groups
        source = listing.files[row].source()
        assert isinstance(source, StoredBytes)
        assert source.name == f"{tmp_path}/train.parquet/{row}"
        assert audio_seconds(source) == pytest.approx((row + 1) / 10)


def test_several_files_of_a_folder(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"data/train-0000{number}-of-00002.parquet", dataset(2))
    write(tmp_path / "data/test-00000-of-00001.parquet", dataset(1))
    (tmp_path / "dataset_infos.json").touch()
    listing = find_audio(tmp_path)
    assert listing.layout == "3 files, each a parquet (files in column audio)"
    assert listing.notes == ["not read: dataset_infos.json; to read a table, give it as --audio"]
    assert [file.name for file in listing.files][:3] == [
        "data/test-00000-of-00001.parquet/0",
        "data/train-00000-of-00002.parquet/0",
        "data/train-00000-of-00002.parquet/1",
    ]
    assert len({file.key for file in listing.files}) == 5
    assert len(find_audio(tmp_path / "data" / "train-*.parquet").files) == 4


def test_bytes_alone_and_paths_in_cells(tmp_path: Path) -> None:
    (tmp_path / "near.wav").write_bytes(wav(0.3))
    plain = list_audio(write(tmp_path / "a.parquet", {"sound": [wav(0.2)], "text": ["x"]}))[0]
    assert audio_seconds(plain.source()) == pytest.approx(0.2)
    cells = pa.array(
        [{"bytes": None, "path": "near.wav"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"audio": cells, "text": ["x"]}), tmp_path / "b.parquet")
    assert list_audio(tmp_path / "b.parquet")[0].source() == tmp_path / "near.wav"


def test_paths_in_a_column(tmp_path: Path) -> None:
    listing = find_audio(write(tmp_path / "a.parquet", {"audio": ["x/a.wav"], "text": ["x"], "start": [1.5]}))
    assert listing.layout == "a list (files in column audio)"
    assert (listing.files[0].path, listing.files[0].start) == (tmp_path / "x/a.wav", 1.5)


def test_an_audio_folder_with_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    write(tmp_path / "metadata.parquet", {"file_name": ["a.wav"], "caption": ["x"]})
    (file,) = list_audio(tmp_path)
    assert file.fields == {"caption": "x"}


def test_what_changes_the_fingerprint(tmp_path: Path) -> None:
    seen = []
    for count in (1, 2):
        files = list_audio(write(tmp_path / "a.parquet", dataset(count)))
        seen.append(fingerprint(take_stats(files[:1])))
    assert seen[0] != seen[1]


def test_columns_of_other_types_are_named(tmp_path: Path) -> None:
    table = {
        **dataset(2),
        "embedding": [[0.1, 0.2]] * 2,
        "when": [pa.scalar(0, pa.timestamp("s")).as_py()] * 2,
    }
    assert find_audio(write(tmp_path / "a.parquet", table)).notes == [
        "not read: columns embedding, when of a.parquet"
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["x"], "label": [1]},
            r"a\.parquet has columns text, label; a column with files, or one of path",
        ),
        (
            {"sound": [b"x"], "image": [b"y"]},
            r"a\.parquet has files in sound, image; rename the column with the sound",
        ),
        ({"path": ["a.wav", None], "text": ["x", "y"]}, r"a\.parquet row 1 has no path; fill it in"),
        ({"audio": [b"x"], "start": ["soon"]}, r"a\.parquet row 0: start is not a number of seconds"),
        (
            {"audio": [b"x"], "text": ["x" * 2_000_000]},
            r"column text has a value of 2000000 bytes in rows 0 to 0",
        ),
        ({"audio": [], "text": []}, r"a\.parquet has no lines"),
    ],
)
def test_bad_tables(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    table = pa.table(
        {name: pa.array(values, None if values else pa.binary()) for name, values in columns.items()}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        list_audio(tmp_path / "a.parquet")


def test_empty_cells_are_a_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"audio": [b"x", None]})
    with pytest.raises(UserError, match=r"a\.parquet/1 is empty; fill in column audio"):
        list_audio(path)[1].source()


def test_damaged_tables(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", dataset(), compression="none")
    data = path.read_bytes()
    for damaged in (b"", b"PAR1", data[:500], os.urandom(2000), data[: len(data) // 2] + data[-500:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.parquet (is not a readable parquet|cannot be read)"):
            [file.source() for file in list_audio(path)]


def test_a_repeated_text_is_in_memory_once(tmp_path: Path) -> None:
    """A kilobyte of parquet that stands for a gigabyte of text is read with little memory."""
    table = pa.table(
        {"text": pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * 1_000_000])}
    )
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    rows = ParquetTable(tmp_path / "a.parquet").rows()
    assert len(next(rows)["text"]) == 1_000_000
    assert pa.total_allocated_bytes() < 50e6


MEASURE = """
import resource, sys
from pathlib import Path
from magnet_train.storage.parquet import Cell, ParquetTable, read_cell
table = Path(sys.argv[1])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
first = len(list(ParquetTable(table).rows()))
listed = peak()
for row in range(first):
    assert len(read_cell(Cell(table, "audio", row), "x").data) == 1_000_000
print(first, listed, peak())
"""


def test_audio_is_not_in_memory_at_once(tmp_path: Path) -> None:
    """Of 200 MB in row groups of 10 MB; the list takes none of it, and a row that of its group a few times."""
    structure = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    with pq.ParquetWriter(
        tmp_path / "a.parquet", pa.schema([("audio", structure), ("text", pa.string())])
    ) as file:
        for group in range(20):
            cells = pa.array([{"bytes": os.urandom(1_000_000), "path": "x"} for _ in range(10)], structure)
            file.write_table(pa.table({"audio": cells, "text": [f"{group}"] * 10}))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.parquet")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    rows, listed, peak = map(int, done.stdout.split())
    assert rows == 200
    assert peak - listed < 100


def test_the_samples_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", dataset(3))
    (tmp_path / "a.wav").write_bytes(wav(0.2))
    found = read_audio(read_cell(Cell(path, "audio", 1), "x"), 8_000, 1)
    assert (found == read_audio(tmp_path / "a.wav", 8_000, 1)).all()
