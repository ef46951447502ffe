"""Lists: jsonl as the reference writes it, and the CSVs of MusicCaps and AudioCaps."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from datamodules.tokenize.audio_files import list_audio
from datamodules.tokenize.readers import tables
from datamodules.tokenize.readers.audio_file import SUFFIXES
from magnet_train.errors import UserError

MUSICCAPS = """ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval
-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck","['low quality', 'soulful ballad']","The low quality song.",4,False,True
gone,0,10,/m/04rlf,"['pop']","A pop song.",4,False,True
"""
AUDIOCAPS = """audiocap_id,youtube_id,start_time,caption
91139,r1nicOVtvkQ,130,A woman talks nearby as water pours
58146,r1nicOVtvkQ,130,A person speaks while water runs
"""


def put(folder: Path, name: str, content: str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_paths_and_fields_of_a_jsonl(tmp_path: Path) -> None:
    lines = [{"path": "sub/a.wav", "text": "one", "genre": "jazz"}, {"path": "/abs/b.wav", "start": 2.5}]
    manifest = put(tmp_path, "m.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n")
    first, second = list_audio(manifest)
    assert (first.path, first.name, first.start) == (tmp_path / "sub/a.wav", "sub/a.wav", None)
    assert first.fields == {"text": "one", "genre": "jazz"}
    assert (second.path, second.start, second.end, second.key) == (
        Path("/abs/b.wav"),
        2.5,
        None,
        "abs__b-2_5s",
    )
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(manifest.read_bytes()))
    assert list_audio(tmp_path / "m.jsonl.gz") == [first, second]


def test_musiccaps(tmp_path: Path) -> None:
    put(tmp_path, "audio/-0Gj8-vB1q4.wav")
    found, gone = list_audio(put(tmp_path, "musiccaps.csv", MUSICCAPS))
    assert found.path == tmp_path / "audio/-0Gj8-vB1q4.wav"
    assert (found.start, found.end) == (30.0, 40.0)
    assert found.fields["caption"].startswith("The low")
    assert found.fields["keywords"] == ["low quality", "soulful ballad"]
    assert found.key == "audio__0Gj8-vB1q4-30s"
    assert found.by_id
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    assert gone.problem == f"missing: no gone ({kinds}) in the folder of musiccaps.csv"


@pytest.mark.parametrize("name", ["r1nicOVtvkQ", "r1nicOVtvkQ_130", "[r1nicOVtvkQ]-[130-140]", "91139"])
def test_audiocaps_under_the_names_of_its_downloaders(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"train/{name}.flac")
    first = list_audio(put(tmp_path, "train.csv", AUDIOCAPS))[0]
    assert first.path == tmp_path / f"train/{name}.flac"
    assert (first.start, first.end) == (130.0, 140.0)
    assert first.fields["caption"] == "A woman talks nearby as water pours"


def test_a_clip_that_is_listed_twice_is_a_duplicate(tmp_path: Path) -> None:
    put(tmp_path, "r1nicOVtvkQ.wav")
    first, second = list_audio(put(tmp_path, "train.csv", AUDIOCAPS))
    assert first.problem is None
    assert second.problem == "duplicate: listed before"
    assert first.key != second.key


def test_a_csv_with_paths(tmp_path: Path) -> None:
    table = put(tmp_path, "t.csv", "\ufefffile_name,text,start,end,bpm\na.wav,slow,,,90\nb.wav,fast,1.5,3,\n")
    first, second = list_audio(table)
    assert (first.path, first.fields) == (tmp_path / "a.wav", {"text": "slow", "bpm": "90"})
    assert (second.start, second.end, second.fields) == (1.5, 3.0, {"text": "fast"})
    assert second.label == f"{tmp_path / 'b.wav'} from 1.5 s to 3 s"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", "", "has no lines"),
        ("m.jsonl", '{"path": "a.wav", "text": "x"}\n{', "line 2 is not JSON"),
        ("m.jsonl", '{"text": "x"}', "line 1 has no path"),
        ("m.jsonl", '{"path": ""}', "line 1 has no path"),
        ("m.jsonl", "[1]", "line 1 has no path"),
        ("m.jsonl", '{"path": "a.wav", "start": "soon"}', "line 1: start is not a number of seconds"),
        ("m.jsonl", '{"path": "a.wav", "start": true}', "line 1: start is not a number of seconds"),
        ("m.jsonl", '{"path": "a.wav", "start": [1]}', "line 1: start is not a number of seconds"),
        ("m.jsonl", '{"path": "a.wav", "end": 1e999}', "line 1: end is not a number of seconds"),
        ("m.jsonl", f'{{"path": "a.wav", "end": 1{"0" * 400}}}', "line 1: end is not a number of seconds"),
        ("m.csv", "path,end\na.wav,nan", "line 2: end is not a number of seconds"),
        ("m.jsonl", '{"path": "a.wav", "start": 3, "end": 2}', "a clip cannot go from 3 s to 2 s"),
        ("m.csv", "", "columns none; one of path"),
        ("m.csv", "caption\nx", "columns caption; one of path"),
        ("m.csv", "path,caption\n", "has no lines"),
        ("m.csv", "path,caption\n,x", "line 2 has no path"),
        ("m.csv", "ytid,caption\n,x", "line 2 has no ytid"),
        ("m.jsonl", '{"path": "a.wav", "start": 3, "end": 3}', "a clip cannot go from 3 s to 3 s"),
        ("m.jsonl", '{"path": "a.wav", "end": -2}', "a clip cannot go from 0 s to -2 s"),
        ("m.csv", "path,start_s\na.wav,-1", "cannot go from -1 s to the end"),
    ],
)
def test_bad_lists(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_audio(put(tmp_path, name, content))


def test_a_gzipped_list_is_unpacked_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB of zeros take 100 kB gzipped; no more than the limit gets into memory."""
    monkeypatch.setattr(tables, "_MAX_UNPACKED_BYTES", 10**6)
    with gzip.open(tmp_path / "m.jsonl.gz", "wb") as file:
        for _ in range(100):
            file.write(bytes(10**6))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"m\.jsonl\.gz is unreadable \(it unpacks to more than 1000000"):
            list_audio(tmp_path / "m.jsonl.gz")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_list_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="unreadable"):
        list_audio(tmp_path / "m.jsonl")
