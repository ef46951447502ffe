"""What tokenize reads of a NAME.describe.json, and what goes before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.caption_rules import CaptionError, CaptionTemplate
from datamodules.tokenize.captions import describe
from datamodules.tokenize.description import (
    Description,
    description_path,
    read_description,
    write_description,
)
from datamodules.tokenize.sources import fingerprint, take_stats

FIELDS = {"bpm": 120, "key": "A minor", "loudness": -14.2, "duration": 30.0, "tags": ["slow piano", "calm"]}


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    (tmp_path / "a.txt").write_text("written by a person")
    return path


def put(audio: Path, **fields: object) -> Description:
    found = audio.stat()
    description = Description(found.st_size, found.st_mtime_ns, fields, {"key": "C major"}, {"key": 0.01})
    write_description(audio, description)
    return description


def test_it_reads_back_as_written(audio):
    assert read_description(audio) is None
    description = put(audio, **FIELDS)
    assert read_description(audio) == description
    assert description.is_of(audio)
    assert description_path(audio).name == "a.wav.describe.json"


def test_the_fields_join_the_metadata_and_the_uncertain_do_not(audio):
    put(audio, bpm=120)
    assert describe(audio, {}) == {"text": "written by a person", "bpm": 120}


def test_what_a_person_wrote_goes_first(audio):
    put(audio, **FIELDS)
    audio.with_suffix(".json").write_text(json.dumps({"bpm": 60, "key": "D minor"}))
    found = describe(audio, {"key": "E minor"})
    assert (found["bpm"], found["key"], found["loudness"]) == (60, "E minor", -14.2)


def test_it_never_gives_the_caption(audio):
    put(audio, text="made up", caption="made up", bpm=120)
    assert describe(audio, {})["text"] == "written by a person"
    audio.with_suffix(".txt").unlink()
    with pytest.raises(CaptionError, match="no caption"):
        describe(audio, {})


def test_a_template_uses_the_fields(audio):
    put(audio, **FIELDS)
    audio.with_suffix(".txt").unlink()
    template = CaptionTemplate("{tags}, {key}, {bpm:d} bpm")
    assert describe(audio, {}, template)["text"] == "slow piano, calm, A minor, 120 bpm"
    put(audio, bpm=120.4)
    with pytest.raises(CaptionError, match="the template wants tags, key"):
        describe(audio, {}, template)
    assert describe(audio, {}, CaptionTemplate("{bpm:.0f} bpm"))["text"] == "120 bpm"


def test_a_part_of_a_file_has_none(audio):
    put(audio, **FIELDS)
    assert describe(audio, {}, whole=False) == {"text": "written by a person"}


def test_another_recording_of_the_same_name_has_none(audio):
    put(audio, **FIELDS)
    audio.write_bytes(b"another sound")
    assert describe(audio, {}) == {"text": "written by a person"}


def test_files_that_differ_in_their_suffix_have_their_own(audio):
    put(audio, bpm=120)
    other = audio.with_suffix(".mp3")
    other.write_bytes(b"other sound")
    assert "bpm" not in describe(other, {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "a.wav.describe.json: "),
        ("[1]", "it has no format 1"),
        ('{"format": 2}', "it has no format 1"),
        (
            '{"format": 1, "bytes": 5, "modified_ns": 1, "fields": [], "uncertain": {}, "confidence": {}}',
            "fields is not",
        ),
        ('{"format": 1, "bytes": "5"}', "bytes is not a whole number"),
        (
            '{"format": 1, "bytes": 5, "modified_ns": 1, "fields": {}, "uncertain": {}, "confidence": {}, "x": 1}',
            "unknown key x",
        ),
        ("\x00\x00\x00\x00", "UTF-16"),
    ],
)
def test_a_damaged_one_is_a_reason(audio, content, reason):
    description_path(audio).write_text(content)
    with pytest.raises(CaptionError, match=reason):
        describe(audio, {})


def test_the_fingerprint_of_a_job_counts_it_where_there_is_one(audio):
    files = [AudioFile(audio, "a.wav")]
    before = fingerprint(take_stats(files))
    put(audio, bpm=120)
    with_one = fingerprint(take_stats(files))
    assert with_one != before
    description_path(audio).unlink()
    assert fingerprint(take_stats(files)) == before


@pytest.mark.parametrize("name", ["a" * 251 + ".wav", "a\0.wav", "."])
def test_a_name_that_cannot_have_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert read_description(Path(name)) is None
    assert fingerprint(take_stats([AudioFile(Path(name), name)]))
