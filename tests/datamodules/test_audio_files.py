"""Which files are listed, under which keys."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from datamodules.tokenize.audio_files import AudioFile, list_audio
from datamodules.tokenize.sources import fingerprint, take_stats
from magnet_train.errors import UserError


def put(folder: Path, name: str, content: object = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def by_name(files: list[AudioFile]) -> dict[str, AudioFile]:
    return {file.name: file for file in files}


def test_a_folder_is_listed_in_order(tmp_path: Path) -> None:
    for name in ("d.mp3", "b.FLAC", "deep/er/c.ogg", "a.wav"):
        put(tmp_path, name)
    files = by_name(list_audio(tmp_path))
    assert list(files) == ["a.wav", "b.FLAC", "d.mp3", "deep/er/c.ogg"]
    assert files["deep/er/c.ogg"].key == "deep__er__c"
    assert files["deep/er/c.ogg"].path == tmp_path / "deep/er/c.ogg"
    assert all(file.problem is None and not file.fields for file in files.values())


def test_other_files_are_left_alone_but_other_audio_is_reported(tmp_path: Path) -> None:
    for name in ("._a.wav", "cover.jpg", "b.ac3", "notes.txt"):
        put(tmp_path, name)
    (file,) = list_audio(tmp_path)
    assert file.path.name == "b.ac3"
    assert "convert it" in str(file.problem)


def test_a_file_that_is_listed_thousands_of_times(tmp_path: Path) -> None:
    """In linear time; 4,000 rows once took 20 s."""
    put(tmp_path, "a.wav")
    rows = tmp_path / "list.jsonl"
    rows.write_text('{"path": "a.wav", "text": "x"}\n' * 4_000)
    begin = time.process_time()
    files = list_audio(rows)
    assert time.process_time() - begin < 3
    assert len({file.key for file in files}) == 4_000
    assert [file.problem for file in files] == [None, *["duplicate: listed before"] * 3_999]


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


def test_what_changes_the_fingerprint(tmp_path: Path) -> None:
    def print_of() -> str:
        return fingerprint(take_stats(list_audio(tmp_path)))

    put(tmp_path, "a.wav")
    put(tmp_path, "a.txt", "one")
    seen = [print_of(), print_of()]
    assert seen[0] == seen[1]
    put(tmp_path, "a.txt", "a longer caption")
    seen.append(print_of())
    put(tmp_path, "a.json", {"text": "another place"})
    seen.append(print_of())
    put(tmp_path, "a.wav", "other bytes")
    seen.append(print_of())
    put(tmp_path, "b.wav")
    seen.append(print_of())
    assert len(set(seen)) == len(seen) - 1


def test_the_fingerprint_of_a_list_holds_its_lines(tmp_path: Path) -> None:
    put(tmp_path, "m.jsonl", {"path": "gone.wav", "text": "one"})
    first = fingerprint(take_stats(list_audio(tmp_path / "m.jsonl")))
    put(tmp_path, "m.jsonl", {"path": "gone.wav", "text": "two"})
    assert fingerprint(take_stats(list_audio(tmp_path / "m.jsonl"))) != first


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no audio"):
        list_audio(tmp_path)
    with pytest.raises(UserError, match="no folder or list"):
        list_audio(tmp_path / "nowhere")


def test_folders_without_end_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "ok.wav")
    monkeypatch.chdir(tmp_path)
    try:
        for _ in range(1200):  # deeper than Python can recurse
            os.mkdir("a")
            os.chdir("a")
        monkeypatch.undo()
        problems = [file.problem for file in list_audio(tmp_path)]
    finally:  # pytest's own clearing up recurses
        subprocess.run(["rm", "-rf", str(tmp_path / "a")], check=True)
    assert problems == ["unreadable: the folder lies more than 200 folders deep", None]
