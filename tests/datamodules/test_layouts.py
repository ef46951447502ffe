"""The layouts that people keep audio in: a real small table or folder of each, as the readers list it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.tokenize.audio_files import AudioFile, find_audio, list_audio
from magnet_train.errors import UserError

JAMENDO = (
    "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
    "track_0000948\tartist_000087\talbum_000149\t48/948.mp3\t212.7\tgenre---rock\tgenre---pop\tmood/theme---calm\n"
    "track_0001126\tartist_000107\talbum_000183\t26/1126.mp3\t198.0\tinstrument---piano\n"
)
FMA = (
    ",album,artist,set,set,track,track,track\n"
    ",title,name,split,subset,genre_top,tags,title\n"
    "track_id,,,,,,,\n"
    "2,AWOL - A Way Of Life,AWOL,training,small,Hip-Hop,\"['old school', 'rap']\",Food\n"
    "3,AWOL - A Way Of Life,AWOL,training,medium,,[],Electric Ave\n"
    '134,Niris,Nicky Cook,training,large,Folk,[],"Street, Music"\n'
)
ACE_STEP = {
    "metadata": {"name": "mine", "custom_tag": "", "num_samples": 2},
    "samples": [
        {
            "id": "00edb2c3",
            "audio_path": "./songs/one.wav",
            "filename": "one.wav",
            "caption": "An energetic rock track",
            "lyrics": "[Verse 1]\nRising up",
            "bpm": 140,
            "keyscale": "E minor",
            "timesignature": "4",
            "duration": 180,
            "genre": "",
        },
        {"audio_path": "/home/someone/two.wav", "filename": "two.wav", "caption": "Slow jazz", "bpm": "N/A"},
    ],
}


def put(folder: Path, name: str, content: Any = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def by_name(files: list[AudioFile]) -> dict[str, AudioFile]:
    return {file.name: file for file in files}


@pytest.mark.parametrize("place", ["", "train/"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_audio_folder(tmp_path: Path, kind: str, place: str) -> None:
    """Hugging Face's: with the table in the folder given, or below it."""
    for name in ("a.wav", "deep/b.mp3", "c.flac"):
        put(tmp_path, place + name)
    rows = [{"file_name": "deep/b.mp3", "caption": "fast, loud"}, {"file_name": "a.wav", "caption": "slow"}]
    rows.append({"file_name": "gone.wav", "caption": "lost"})
    text = (
        jsonl(*rows)
        if kind == "jsonl"
        else 'file_name,caption\ndeep/b.mp3,"fast, loud"\na.wav,slow\ngone.wav,lost\n'
    )
    put(tmp_path, f"{place}metadata.{kind}", text)
    listing = find_audio(tmp_path)
    assert listing.layout == f"an AudioFolder ({place}metadata.{kind})"
    assert listing.columns == ("caption",)
    assert listing.notes == [f"without a row in {place}metadata.{kind}: 1 of 3 files"]
    files = by_name(list(listing.files))
    assert list(files) == [place + name for name in ("a.wav", "c.flac", "deep/b.mp3", "gone.wav")]
    assert files[place + "a.wav"].fields == {"caption": "slow"}
    assert files[place + "deep/b.mp3"].fields == {"caption": "fast, loud"}
    assert files[place + "deep/b.mp3"].path == tmp_path / place / "deep/b.mp3"
    assert files[place + "c.flac"].fields == {}
    assert files[place + "gone.wav"].problem == "missing: there is no such file in the folder"


def test_an_audio_folder_with_splits_and_parts(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path, f"{split}/a.wav")
        put(
            tmp_path,
            f"{split}/metadata.csv",
            f"file_name,text,start,end\na.wav,{split} one,0,1\na.wav,two,1,3\n",
        )
    found = [(file.name, file.start, file.fields["text"], file.problem) for file in list_audio(tmp_path)]
    assert found == [
        ("test/a.wav", 0.0, "test one", None),
        ("test/a.wav", 1.0, "two", None),
        ("train/a.wav", 0.0, "train one", None),
        ("train/a.wav", 1.0, "two", None),
    ]


def test_a_folder_with_two_metadata_files(tmp_path: Path) -> None:
    put(tmp_path, "a.wav")
    put(tmp_path, "metadata.csv", "file_name,text\na.wav,x\n")
    put(tmp_path, "metadata.jsonl", jsonl({"file_name": "a.wav", "text": "y"}))
    with pytest.raises(UserError, match=r"has both metadata\.csv and metadata\.jsonl; remove one of them"):
        list_audio(tmp_path)


def test_a_malformed_metadata_names_file_and_line(tmp_path: Path) -> None:
    put(tmp_path, "a.wav")
    put(tmp_path, "metadata.csv", "file_name,text\na.wav,x, y\n")
    with pytest.raises(UserError, match=r"metadata\.csv line 2 has 3 fields for 2 columns"):
        list_audio(tmp_path)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    for name in ("a.wav", "a.json", "songs.csv", "deep/list.jsonl", "report.json", "x.jsonl.gz", "a.tar.gz"):
        put(tmp_path, name)
    put(tmp_path, "a.wav.describe.json")  # of `describe`, which is read
    put(tmp_path, "metadata.csv", "LJ001|a sentence\n")  # of LJSpeech, which has no header
    assert find_audio(tmp_path).notes == [
        "not read: metadata.csv, which has no column file_name",
        "not read: deep/list.jsonl, report.json, songs.csv and 1 more; to read a table, give it as --audio",
    ]


def test_a_folder_with_a_table_alone(tmp_path: Path) -> None:
    put(tmp_path, "songs.csv", "path,text\n/x.wav,x\n")
    with pytest.raises(UserError, match=r"holds no audio .*songs\.csv is read if you name it"):
        list_audio(tmp_path)


def test_jamendo(tmp_path: Path) -> None:
    """The second file is of audio-low, where names have another suffix."""
    put(tmp_path, "48/948.mp3")
    put(tmp_path, "26/1126.low.mp3")
    listing = find_audio(put(tmp_path, "autotagging.tsv", JAMENDO))
    assert listing.layout == "an MTG-Jamendo table (files in column PATH)"
    first, second = listing.files
    assert (first.name, second.name) == ("48/948.mp3", "26/1126.low.mp3")
    assert first.fields == {
        "track_id": "track_0000948",
        "artist_id": "artist_000087",
        "album_id": "album_000149",
        "duration": "212.7",
        "genre": ["rock", "pop"],
        "moods": ["calm"],
    }
    assert second.fields["instrument"] == ["piano"]
    assert (first.start, first.end) == (None, None)


@pytest.mark.parametrize("folder", ["", "fma_metadata/"])
def test_fma(tmp_path: Path, folder: str) -> None:
    """Its table has all tracks, and people the files of a subset: beside the table, or in a folder beside the table's."""
    put(tmp_path, "fma_small/000/000002.mp3")
    put(tmp_path, "fma_small/000/000134.mp3")
    listing = find_audio(put(tmp_path, folder + "tracks.csv", FMA))
    assert listing.layout == "FMA's tracks.csv (files in column track_id)"
    assert listing.notes == ["not used: rows of tracks.csv without a file here (1)"]
    first, second = listing.files
    assert first.path == tmp_path / "fma_small/000/000002.mp3"
    assert first.problem is None
    assert first.fields == {
        "track_id": "000002",
        "title": "Food",
        "artist": "AWOL",
        "album": "AWOL - A Way Of Life",
        "genre": "Hip-Hop",
        "keywords": ["old school", "rap"],
        "split": "training",
        "subset": "small",
    }
    assert second.fields["title"] == "Street, Music"


def test_a_tsv_with_quotes(tmp_path: Path) -> None:
    """As pandas writes them, and as Common Voice, which does not quote."""
    text = 'path\tsentence\na.mp3\tShe said "no\nb.mp3\t"""yes"", he said"\n'
    first, second = list_audio(put(tmp_path, "validated.tsv", text))
    assert first.fields == {"sentence": 'She said "no'}
    assert second.fields == {"sentence": '"yes", he said'}


@pytest.mark.parametrize("name", ["train_manifest.json", "train.jsonl"])
def test_a_nemo_manifest(tmp_path: Path, name: str) -> None:
    lines = [
        {"audio_filepath": "a.wav", "duration": 2.5, "text": "one"},
        {"audio_filepath": "b.wav", "offset": 1.5, "duration": 2.0, "text": "two"},
        {"audio_filepath": "/c.wav", "offset": 3, "text": "three", "lang": "en"},
    ]
    listing = find_audio(put(tmp_path, name, jsonl(*lines)))
    assert listing.layout == "a NeMo manifest (files in column audio_filepath)"
    assert [(file.start, file.end) for file in listing.files] == [(None, 2.5), (1.5, 3.5), (3.0, None)]
    assert listing.files[2].path == Path("/c.wav")
    assert listing.files[2].fields == {"text": "three", "lang": "en"}


def test_a_nemo_manifest_of_one_line(tmp_path: Path) -> None:
    (file,) = list_audio(
        put(tmp_path, "m.json", jsonl({"audio_filepath": "a.wav", "duration": 1, "text": "x"}))
    )
    assert file.end == 1.0


def test_an_omnivoice_manifest(tmp_path: Path) -> None:
    line = {"id": "sample_001", "audio_path": "/data/001.wav", "text": "Hello world", "language_id": "en"}
    listing = find_audio(put(tmp_path, "data.jsonl", jsonl(line)))
    assert listing.layout == "an OmniVoice manifest (files in column audio_path)"
    (file,) = listing.files
    assert file.path == Path("/data/001.wav")
    assert file.fields == {"id": "sample_001", "text": "Hello world", "language_id": "en"}


def test_audiocraft_egs(tmp_path: Path) -> None:
    """Its duration is that of the file, and stays a field."""
    line = {"path": "a.wav", "duration": 30.0, "sample_rate": 32000, "amplitude": None, "weight": None}
    listing = find_audio(put(tmp_path, "data.jsonl", jsonl(line)))
    assert listing.layout == "a list (files in column path)"
    assert listing.files[0].end is None
    assert listing.files[0].fields["duration"] == 30.0


@pytest.mark.parametrize("samples", [ACE_STEP, ACE_STEP["samples"]], ids=["object", "array"])
def test_ace_step(tmp_path: Path, samples: object) -> None:
    """The second path is of another machine; the file lies beside the table."""
    put(tmp_path, "songs/one.wav")
    put(tmp_path, "two.wav")
    listing = find_audio(put(tmp_path, "dataset.json", samples))
    assert listing.layout == "ACE-Step samples (files in column audio_path)"
    first, second = listing.files
    assert (first.path, second.path) == (tmp_path / "songs/one.wav", tmp_path / "two.wav")
    assert first.fields["lyrics"] == "[Verse 1]\nRising up"
    assert first.fields["key"] == "E minor"
    assert first.fields["time_signature"] == "4"
    assert "genre" not in first.fields
    assert (first.start, first.end) == (None, None)
    assert second.fields == {"filename": "two.wav", "caption": "Slow jazz"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.csv",
            "path,audio_filepath,text\na.wav,b.wav,x\n",
            r"line 2 names two files, b\.wav in audio_filepath and a",
        ),
        (
            "m.jsonl",
            jsonl({"path": "a.wav", "file_name": "b.wav"}),
            r"line 1 names two files, a\.wav in path and b\.wav",
        ),
        (
            "m.tsv",
            "TRACK_ID\tALBUM\n1\t2\n",
            r"m\.tsv has columns TRACK_ID, ALBUM; one of path, file, file_name",
        ),
        (
            "m.json",
            {"samples": [{"caption": "x"}]},
            r"m\.json sample 1 has no path; of its fields caption one has to be",
        ),
        (
            "m.json",
            {"samples": [{"audio_path": "a.wav"}, {}]},
            r"m\.json sample 2 has no audio_path; fill it in",
        ),
        ("m.json", [1], r"m\.json sample 1 has no path"),
        ("m.json", '{\n "name": "x"\n}', r"m\.json is one object without samples"),
        ("m.json", "{", r"m\.json line 1 is not JSON"),
        (
            "m.jsonl",
            jsonl({"audio_filepath": "a.wav", "offset": "soon"}),
            r"line 1: offset is not a number of seconds",
        ),
        (
            "m.jsonl",
            jsonl({"audio_filepath": "a.wav", "duration": 0}),
            r"line 1: a clip cannot go from 0 s to 0 s",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_audio(put(tmp_path, name, content))


def test_one_file_in_two_columns(tmp_path: Path) -> None:
    (file,) = list_audio(put(tmp_path, "m.csv", "file_name,path,text\na.wav,deep/a.wav,x\n"))
    assert file.name == "deep/a.wav"


def test_a_folder_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """There files are links to blobs; two of the same content are one blob."""
    for blob in ("1", "2"):
        put(tmp_path, f"blobs/{blob}", blob)
    put(tmp_path, "blobs/3", "file_name,text\na.wav,one\nb.wav,two\n")
    snapshot = tmp_path / "snapshots/abc/data"
    snapshot.mkdir(parents=True)
    for name, blob in (("a.wav", "1"), ("b.wav", "2"), ("metadata.csv", "3")):
        os.symlink(f"../../../blobs/{blob}", snapshot / name)
    files = list_audio(snapshot)
    assert [(file.name, file.fields["text"], file.problem) for file in files] == [
        ("a.wav", "one", None),
        ("b.wav", "two", None),
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet", "csv.gz"]),
    st.binary(max_size=80) | st.text(max_size=80).map(str.encode),
    st.sampled_from(
        [b"", b"path,text\n", b'{"path": "', b"TRACK_ID\tPATH\tTAGS\n", b",track\n,x\ntrack_id,\n", b"[{"]
    ),
)
def test_any_bytes_as_a_table(tmp_path: Path, kind: str, content: bytes, start: bytes) -> None:
    """A list, or one sentence that names the file."""
    path = tmp_path / f"t.{kind}"
    path.write_bytes(start + content)
    message = None
    try:
        assert list_audio(path)
    except UserError as error:
        message = str(error)
    assert message is None or str(path) in message
