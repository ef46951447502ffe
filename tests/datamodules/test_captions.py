"""Where captions come from, and why there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules.tokenize.caption_rules import CaptionError, CaptionTemplate
from datamodules.tokenize.captions import describe
from magnet_train.errors import UserError

TAGS = {"title": "Blue", "artist": "Some One", "genre": "Rock"}


def put(folder: Path, name: str, content: object = "") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def tagged(path: Path, **tags: str) -> Path:
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for name, value in tags.items():
            setattr(file, name, value)
        file.write(np.full(800, 0.1))
    return path


def test_json_goes_before_txt(tmp_path: Path) -> None:
    audio = put(tmp_path, "a.wav")
    put(tmp_path, "a.txt", "  two\n lines ")
    assert describe(audio, {}) == {"text": "two lines"}
    put(tmp_path, "a.json", {"text": "from json", "bpm": 90})
    assert describe(audio, {}) == {"text": "from json", "bpm": 90}


def test_the_fields_of_the_reference_come_along(tmp_path: Path) -> None:
    record = {
        "title": "C",
        "artist": "D",
        "genre": "jazz",
        "moods": ["calm", "blue"],
        "bpm": 90,
        "key": "C minor",
        "keywords": ["piano"],
        "description": "a slow piano",
    }
    put(tmp_path, "a.json", record)
    text = record.pop("description")
    assert describe(tmp_path / "a.wav", {}) == {**record, "text": text}


def test_the_first_caption_that_is_filled_in(tmp_path: Path) -> None:
    put(tmp_path, "a.json", {"text": "", "caption": "captioned"})
    assert describe(tmp_path / "a.wav", {})["text"] == "captioned"


def test_the_list_goes_before_what_lies_beside(tmp_path: Path) -> None:
    put(tmp_path, "a.json", {"text": "beside", "bpm": 90, "genre": "rock"})
    assert describe(tmp_path / "a.wav", {"caption": "listed", "bpm": 80}) == {
        "text": "listed",
        "bpm": 80,
        "genre": "rock",
    }


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_tags_make_a_caption_where_there_is_no_other(tmp_path: Path, suffix: str) -> None:
    audio = tagged(tmp_path / f"a.{suffix}", **TAGS)
    assert describe(audio, {}) == {**TAGS, "text": "Rock, Blue, Some One"}
    put(tmp_path, "a.txt", "words of a person")
    assert describe(audio, {}) == {**TAGS, "text": "words of a person"}
    put(tmp_path, "a.json", {"genre": "jazz"})
    assert describe(audio, {}) == {**TAGS, "genre": "jazz", "text": "words of a person"}
    (tmp_path / "a.txt").unlink()
    assert describe(audio, {}, CaptionTemplate("{genre} by {artist}"))["text"] == "jazz by Some One"


def test_a_template_is_for_files_without_a_caption(tmp_path: Path) -> None:
    template = CaptionTemplate("{genre} with {instrument}")
    put(tmp_path, "a.json", {"genre": "jazz", "instrument": ["piano", "bass"], "text": ""})
    assert describe(tmp_path / "a.wav", {}, template)["text"] == "jazz with piano, bass"
    put(tmp_path, "a.json", {"genre": "jazz", "instrument": "piano", "text": "own words"})
    assert describe(tmp_path / "a.wav", {}, template)["text"] == "own words"
    put(tmp_path, "a.json", {"genre": "jazz", "instrument": []})
    with pytest.raises(CaptionError, match="no caption: the template wants instrument"):
        describe(tmp_path / "a.wav", {}, template)


@pytest.mark.parametrize("pattern", ["no field", "{", "{}", "{0}", "{genre.x}", "{genre[0]}"])
def test_templates_that_cannot_be_filled(pattern: str) -> None:
    with pytest.raises(UserError, match="--caption_template"):
        CaptionTemplate(pattern)


@pytest.mark.parametrize(
    ("sidecar", "content", "problem"),
    [
        (None, "", "no caption: no .json"),
        ("a.json", {"bpm": 3}, "no caption: none of"),
        ("a.json", {"text": 3}, "text is a int"),
        ("a.json", "{", "unreadable caption"),
        ("a.json", "[1]", "not a JSON object"),
        ("a.json", '{"text": "x", "bpm": NaN}', "NaN is not JSON"),
        ("a.txt", " \n", "no caption"),
        ("a.json", {"text": "  "}, "no caption: none of"),
    ],
)
def test_what_is_wrong_with_a_caption(
    tmp_path: Path, sidecar: str | None, content: object, problem: str
) -> None:
    put(tmp_path, "a.wav")
    if sidecar is not None:
        put(tmp_path, sidecar, content)
    with pytest.raises(CaptionError, match=problem):
        describe(tmp_path / "a.wav", {})


def test_a_caption_file_without_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(CaptionError, match=r"unreadable caption: a.txt: it has more than 16777216 bytes"):
        describe(tmp_path / "a.wav", {})
