"""The JSON of all samples of a folder has the same fields and types, and `datasets` loads it with all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules.shards.reading import ShardReader
from datamodules.shards.verify import verify_shards
from datamodules.tokenize.schema import common_schema, conform, fits, schema_of
from magnet_train.cli.main import main


def common(*samples: dict[str, Any]) -> list[dict[str, Any]]:
    """Return samples with their common schema."""
    schema = common_schema(map(schema_of, samples))
    assert schema is not None
    conformed = [conform(sample, schema) for sample in samples]
    assert all(sample.keys() == schema.keys() for sample in conformed)
    return conformed


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], [1, 2]),
        ([1, 2.5], [1.0, 2.5]),
        ([1, None], ["1", ""]),
        ([1, "fast"], ["1", "fast"]),
        ([True, 1], ["True", "1"]),
        ([["a"], ["b", "c"]], [["a"], ["b", "c"]]),
        ([["a", "b"], []], ["a, b", ""]),
        ([[1], [0.5]], [[1.0], [0.5]]),
        ([[1, "a"], [2, "b"]], ["1, a", "2, b"]),
        ([["a"], "b"], ["a", "b"]),
        ([{"x": 1}, {"x": 2}], [{"x": 1}, {"x": 2}]),
        ([{"x": 1}, {"y": 2}], ['{"x": 1}', '{"y": 2}']),
        ([None, None], [None, None]),
        ([{"x": {"y": [1]}}, {"x": {"y": [2.5]}}], ['{"x": {"y": [1]}}', '{"x": {"y": [2.5]}}']),
    ],
)
def test_one_type_for_a_field(values: list[Any], expected: list[Any]) -> None:
    samples = common(*({"text": "a", "field": value} for value in values))
    assert [sample["field"] for sample in samples] == expected
    assert [type(sample["field"]) for sample in samples] == [type(value) for value in expected]


def test_absent_fields() -> None:
    samples = common({"text": "a", "bpm": 90}, {"text": "b", "start": 61.5}, {"text": "c", "moods": ["x"]})
    assert samples == [
        {"text": "a", "bpm": "90", "start": 0.0, "moods": ""},
        {"text": "b", "bpm": "", "start": 61.5, "moods": ""},
        {"text": "c", "bpm": "", "start": 0.0, "moods": "x"},
    ]


def test_a_settled_schema_keeps_its_types_and_gets_new_fields_as_text() -> None:
    settled = {"text": "text", "bpm": "int", "genre": "text", "moods": "[text]"}
    samples = [
        {"text": "a", "bpm": "120", "year": 1990, "moods": "calm"},
        {"text": "b", "bpm": "fast", "year": 1991, "moods": []},
    ]
    schema = common_schema(map(schema_of, samples), settled)
    assert schema == {**settled, "year": "text"}
    assert [conform(sample, schema) for sample in samples] == [
        {"text": "a", "bpm": 120, "genre": "", "moods": ["calm"], "year": "1990"},
        {"text": "b", "bpm": None, "genre": "", "moods": [], "year": "1991"},
    ]
    assert [fits(sample, schema) for sample in samples] == [True, False]
    assert not fits({"text": "a", "other": 1}, schema)


def test_the_type_of_a_deep_object_is_no_longer_than_the_object() -> None:
    deep: Any = 1
    for _ in range(30):
        deep = {'a"b': [deep]}
    assert len(schema_of({"field": deep})["field"]) < 500


def test_too_many_fields_and_too_large_samples_stay_as_they_are() -> None:
    assert common_schema({f"field{number}": "int"} for number in range(300)) is None
    large = {"text": "a", "other": "x" * (2**20 - 40)}
    assert conform(large, {"text": "text", "other": "text", "one_more": "text"}) == large


def tokenize(tmp_path: Path, fields: list[dict[str, Any]], *words: str) -> Path:
    audio, out = tmp_path / "audio", tmp_path / "shards"
    audio.mkdir(exist_ok=True)
    for number, record in enumerate(fields):
        path = audio / f"clip{number:02d}.wav"
        if not path.exists():
            soundfile.write(
                path, 0.1 * np.random.default_rng(number).standard_normal(800 + 80 * number), 8000
            )
        path.with_suffix(".json").write_text(json.dumps({"text": f"sound {number}", **record}))
    command = [
        "tokenize",
        "--audio",
        str(audio),
        "--out",
        str(out),
        "--codec",
        "quickstart",
        "--device",
        "cpu",
    ]
    assert main([*command, "--files-per-shard", "4", *words]) == 0
    assert verify_shards(out) == []
    return out


def test_samples_of_one_schema_keep_their_json(tmp_path: Path) -> None:
    out = tokenize(tmp_path, [{"bpm": 90, "moods": ["calm"]}, {"moods": ["fast", "loud"], "bpm": 91}])
    reader = ShardReader(out)
    written = [json.dumps(reader[number].metadata) for number in range(2)]
    assert written == [
        '{"bpm": 90, "moods": ["calm"], "text": "sound 0", "source": "clip00.wav"}',
        '{"moods": ["fast", "loud"], "bpm": 91, "text": "sound 1", "source": "clip01.wav"}',
    ]


# Fields that are absent, empty or of another type in the first five samples, from which `datasets` takes the schema.
FIELDS = [
    *({"genre": "rock", "bpm": 90, "year": number, "moods": []} for number in range(6)),
    {"genre": None, "bpm": 90.5, "year": 1990, "moods": ["calm", "slow"]},
    {"bpm": 91, "year": "about 1990", "key": "C", "keywords": ["a"]},
    {"genre": "jazz", "bpm": 92, "year": 1991, "more": {"deep": [1, 2]}},
]


def load(out: Path, cache: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.load_dataset(
        "webdataset", data_dir=str(out), data_files="*.tar", split="train", cache_dir=str(cache)
    )


def test_datasets_loads_all_fields(tmp_path: Path) -> None:
    out = tokenize(tmp_path, FIELDS)
    rows = list(load(out, tmp_path / "cache"))
    reader = ShardReader(out)
    assert [row["__key__"] for row in rows] == [f"clip{number:02d}" for number in range(9)]
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(row["npy"], reader[number].tokens)
        assert row["json"] == reader[number].metadata
        assert row["json"]["bpm"] == float(FIELDS[number]["bpm"])
        assert row["json"]["year"] == str(FIELDS[number]["year"])
    assert rows[6]["json"]["moods"] == "calm, slow"
    assert rows[8]["json"]["more"] == '{"deep": [1, 2]}'


def test_datasets_loads_a_folder_that_grew(tmp_path: Path) -> None:
    out = tokenize(tmp_path, [{"bpm": 90, "genre": "rock"}] * 6)
    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    fields = [{"bpm": 90, "genre": "rock"}] * 6 + [
        {"bpm": "91"},
        {"genre": "jazz"},
        {"bpm": "fast", "key": "C"},
    ]
    tokenize(tmp_path, fields)
    (tmp_path / "audio" / "clip01.json").write_text(json.dumps({"text": "other", "bpm": 93}))
    tokenize(tmp_path, [])
    assert (out / "shard-000001.tar").read_bytes() == before["shard-000001.tar"]
    rows = [row["json"] for row in load(out, tmp_path / "cache")]
    assert [row["bpm"] for row in rows] == [90, 93, 90, 90, 90, 90, 91, None, None]
    assert [row["genre"] for row in rows] == ["rock", ""] + ["rock"] * 4 + ["", "jazz", ""]
    assert ShardReader(out)[8].metadata["key"] == "C"
