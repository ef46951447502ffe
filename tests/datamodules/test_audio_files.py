"""Captions and keys of whatever lies in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.audio_files import AudioFile, list_audio
from magnet_train.errors import UserError


def put(folder: Path, name: str, content: object = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def by_name(files: list[AudioFile]) -> dict[str, AudioFile]:
    return {str(file.metadata["source"]): file for file in files}


def test_captions_from_json_and_txt(tmp_path: Path) -> None:
    put(tmp_path, "a.wav")
    put(tmp_path, "a.json", {"text": "from json", "bpm": 90})
    put(tmp_path, "a.txt", "not this one")
    put(tmp_path, "b.FLAC")
    put(tmp_path, "b.txt", "  two\n lines ")
    put(tmp_path, "deep/er/c.ogg")
    put(tmp_path, "deep/er/c.json", {"description": "described", "title": "C"})
    put(tmp_path, "d.mp3")
    put(tmp_path, "d.json", {"text": "", "caption": "captioned"})
    files = by_name(list_audio(tmp_path))
    assert list(files) == ["a.wav", "b.FLAC", "d.mp3", "deep/er/c.ogg"]
    assert files["a.wav"].metadata == {"text": "from json", "bpm": 90, "source": "a.wav"}
    assert files["b.FLAC"].metadata["text"] == "two lines"
    assert files["deep/er/c.ogg"].metadata == {"text": "described", "title": "C", "source": "deep/er/c.ogg"}
    assert files["deep/er/c.ogg"].key == "deep__er__c"
    assert files["d.mp3"].metadata["text"] == "captioned"
    assert all(file.problem is None for file in files.values())


@pytest.mark.parametrize(
    ("sidecar", "content", "problem"),
    [
        (None, "", "no caption: no .json"),
        ("a.json", {"bpm": 3}, "no caption: none of"),
        ("a.json", {"text": 3}, "text is a int"),
        ("a.json", "{", "unreadable caption"),
        ("a.json", "[1]", "no JSON object"),
        ("a.txt", " \n", "no caption"),
        ("a.json", {"text": "  "}, "no caption: it is blank"),
    ],
)
def test_what_is_wrong_with_a_caption(
    tmp_path: Path, sidecar: str | None, content: object, problem: str
) -> None:
    put(tmp_path, "a.wav")
    if sidecar is not None:
        put(tmp_path, sidecar, content)
    (file,) = list_audio(tmp_path)
    assert problem in str(file.problem)


def test_other_files_are_left_alone_but_other_audio_is_told(tmp_path: Path) -> None:
    for name in ("._a.wav", "cover.jpg", "b.m4a", "notes.txt"):
        put(tmp_path, name)
    (file,) = list_audio(tmp_path)
    assert file.path.name == "b.m4a"
    assert "convert it" in str(file.problem)


def test_keys_are_safe_and_unique(tmp_path: Path) -> None:
    names = [
        "x.y.wav",
        "x_y.wav",
        "ünï.wav",
        "日本.wav",
        "中国.wav",
        "a b/../c.wav",
        "__init__.wav",
        "n" * 120 + ".wav",
    ]
    names += ["a/b.wav", "a__b.wav", "b.flac", "b.wav"]
    put(tmp_path, "m.jsonl", "\n".join(json.dumps({"path": name, "text": "t"}) for name in names))
    files = list_audio(tmp_path / "m.jsonl")
    keys = [file.key for file in files]
    assert len(set(keys)) == len(names)
    for key in keys:
        assert 1 <= len(key) <= 80
        assert not set(key) & set("./\\ ")
        assert not key.startswith("_")
    assert keys == [file.key for file in list_audio(tmp_path / "m.jsonl")]


def test_manifest_paths_and_fields(tmp_path: Path) -> None:
    lines = [{"path": "sub/a.wav", "text": "one", "genre": "jazz"}, {"path": "/abs/b.wav"}]
    put(tmp_path, "m.jsonl", "\n\n".join(json.dumps(line) for line in lines) + "\n")
    first, second = list_audio(tmp_path / "m.jsonl")
    assert first.path == tmp_path / "sub/a.wav"
    assert first.metadata == {"text": "one", "genre": "jazz", "source": "sub/a.wav"}
    assert second.path == Path("/abs/b.wav")
    assert "no caption" in str(second.problem)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no lines"),
        ('{"path": "a.wav", "text": "x"}\n{', "line 2 is no JSON"),
        ('{"text": "x"}', "line 1 has no path"),
        ("[1]", "line 1 has no path"),
        ('{"path": "a.wav"}\n{"path": "b.wav"}\n{"path": "a.wav"}', "lists a.wav more than once"),
    ],
)
def test_bad_manifests(tmp_path: Path, content: str, message: str) -> None:
    put(tmp_path, "m.jsonl", content)
    with pytest.raises(UserError, match=message):
        list_audio(tmp_path / "m.jsonl")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no audio"):
        list_audio(tmp_path)
    with pytest.raises(UserError, match="no folder or manifest"):
        list_audio(tmp_path / "nowhere")
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="unreadable"):
        list_audio(tmp_path / "m.jsonl")
