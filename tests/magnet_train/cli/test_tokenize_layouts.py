"""`tokenize` on the layouts that people keep, from the command line to the shards."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from datamodules.shards.reading import ShardReader
from magnet_train.cli.evaluation.clips import read_side
from magnet_train.cli.main import main


def noise(path: Path | io.BytesIO, seed: int, seconds: float = 1.0, **options: Any) -> None:
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(8_000 * seconds))
    soundfile.write(path, samples, 8_000, **options)


def tokenize(*words: object) -> int:
    return main(["tokenize", *map(str, words), "--codec", "quickstart", "--device", "cpu"])


def clips(folder: Path) -> dict[str, dict[str, Any]]:
    """Metadata of all clips by source, and their length in frames (50 a second)."""
    reader = ShardReader(folder)
    samples = [reader[number] for number in range(len(reader))]
    return {s.metadata["source"]: {**s.metadata, "frames": s.tokens.shape[1]} for s in samples}


def test_an_audio_folder(tmp_path: Path, capsys: Any) -> None:
    audio = tmp_path / "audio"
    for number in range(5):
        noise(audio / f"train/{number}.wav", number)
    (audio / "train/metadata.csv").write_text(
        "file_name,caption,bpm\n" + "".join(f'{number}.wav,"song {number}, loud",90\n' for number in range(4))
    )
    (audio / "train/4.txt").write_text("caption: from beside\nbpm: 100\nlyrics:\n[Verse]\nOh\n")
    (audio / "notes.csv").write_text("x\n")
    assert tokenize("--audio", audio, "--out", tmp_path / "shards") == 0
    assert capsys.readouterr().out.splitlines()[:7] == [
        f"reading {audio} as an AudioFolder (train/metadata.csv): 5 clips",
        "captions: from column caption (4 of 5)",
        "  train/0.wav -> song 0, loud",
        "  train/1.wav -> song 1, loud",
        "  train/2.wav -> song 2, loud",
        "without a row in train/metadata.csv: 1 of 5 files",
        "not read: notes.csv; to read a table, give it as --audio",
    ]
    found = clips(tmp_path / "shards")
    assert found["train/0.wav"]["text"] == "song 0, loud"
    assert found["train/4.wav"]["text"] == "from beside"
    assert found["train/4.wav"]["lyrics"] == "[Verse]\nOh"
    assert tokenize("--audio", audio, "--out", tmp_path / "shards") == 0
    assert "reading" not in capsys.readouterr().out  # nothing is read again


def parquet(path: Path, count: int, first: int = 0) -> Path:
    rows = []
    for number in range(first, first + count):
        file = io.BytesIO()
        noise(file, number, 1 + number / 10, format="FLAC")
        rows.append({"bytes": file.getvalue(), "path": f"{number}.flac"})
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"text {number}" for number in range(first, first + count)]
    pq.write_table(pa.table({"audio": rows, "prompt": texts}), path, row_group_size=3)
    return path


def test_parquet_files(tmp_path: Path, capsys: Any) -> None:
    """Bytes, in two files; several workers and small shards change nothing."""
    parquet(tmp_path / "data/train-0.parquet", 4)
    parquet(tmp_path / "data/train-1.parquet", 3, first=4)
    words = ("--audio", tmp_path / "data", "--caption_from", "prompt")
    assert tokenize(*words, "--out", tmp_path / "shards", "--workers", 3) == 0
    printed = capsys.readouterr().out
    assert "2 files, each a parquet (files in column audio): 7 clips" in printed
    assert "captions: from --caption_from prompt\n  train-0.parquet/0 -> text 0\n" in printed
    found = clips(tmp_path / "shards")
    assert list(found) == [f"train-{number // 4}.parquet/{number % 4}" for number in range(7)]
    assert [clip["text"] for clip in found.values()] == [f"text {number}" for number in range(7)]
    assert [clip["frames"] for clip in found.values()] == [50 + 5 * number for number in range(7)]
    assert tokenize(*words, "--out", tmp_path / "one", "--workers", 1) == 0
    tar = "shard-000000.tar"
    assert (tmp_path / "one" / tar).read_bytes() == (tmp_path / "shards" / tar).read_bytes()


def test_a_bad_cell_is_a_line_of_the_report(tmp_path: Path) -> None:
    good = io.BytesIO()
    noise(good, 1, format="WAV")
    cells = [good.getvalue(), b"RIFF, they said", None, good.getvalue()[:9_000], good.getvalue()]
    pq.write_table(pa.table({"audio": cells, "text": ["x"] * 5}), tmp_path / "a.parquet")
    assert tokenize("--audio", tmp_path / "a.parquet", "--out", tmp_path / "shards") == 0
    assert list(clips(tmp_path / "shards")) == ["a.parquet/0", "a.parquet/3"]
    lines = [json.loads(line) for line in (tmp_path / "shards/report.jsonl").read_text().splitlines()]
    reasons = {Path(line["path"]).name: line["reason"] for line in lines}
    table = tmp_path / "a.parquet"
    assert reasons["1"].startswith(f"unreadable: cannot read {table}/1 as audio")
    assert reasons["2"].startswith(f"unreadable: {table}/2 is empty; fill in column audio")
    assert reasons["3"].startswith("partial: ")
    assert reasons["4"] == f"duplicate: the same audio as {table}/0"


def test_a_parquet_that_changed_is_not_gone_on_with(tmp_path: Path, capsys: Any) -> None:
    words = ("--audio", tmp_path / "a.parquet", "--caption_from", "prompt", "--out", tmp_path / "shards")
    parquet(tmp_path / "a.parquet", 2)
    assert tokenize(*words) == 0
    assert tokenize("--audio", tmp_path / "a.parquet", "--out", tmp_path / "shards") == 1
    assert "was begun with --caption_from prompt" in capsys.readouterr().err


def test_evaluate_reads_a_parquet(tmp_path: Path) -> None:
    side = read_side(parquet(tmp_path / "a.parquet", 2))
    assert [clip.name for clip in side.clips] == ["0", "1"]
    assert sum(block.shape[-1] for block in side.clips[1].blocks(8_000)) == 8_800


def test_jamendo_and_a_template(tmp_path: Path) -> None:
    noise(tmp_path / "48/948.mp3", 1)
    (tmp_path / "autotagging.tsv").write_text(
        "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
        "track_0000948\ta\tb\t48/948.mp3\t1.0\tgenre---rock\tgenre---pop\tmood/theme---calm\n"
    )
    words = ("--audio", tmp_path / "autotagging.tsv", "--out", tmp_path / "shards")
    assert tokenize(*words, "--caption_template", "{moods} {genre}") == 0
    assert clips(tmp_path / "shards")["48/948.mp3"]["text"] == "calm rock, pop"


def test_a_nemo_manifest(tmp_path: Path) -> None:
    noise(tmp_path / "a.wav", 1, 4.0)
    lines = [{"audio_filepath": "a.wav", "offset": 1.0, "duration": 2.5, "text": "part"}]
    lines.append({"audio_filepath": "a.wav", "offset": 3.0, "duration": 2.5, "text": "too long"})
    (tmp_path / "train.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tokenize("--audio", tmp_path / "train.json", "--out", tmp_path / "shards") == 0
    assert clips(tmp_path / "shards") == {
        "a.wav": {"text": "part", "source": "a.wav", "start": 1.0, "frames": 125}
    }
    assert "beyond the end of the file: it has 4 s" in (tmp_path / "shards/report.jsonl").read_text()


def test_ace_step(tmp_path: Path, capsys: Any) -> None:
    noise(tmp_path / "one.wav", 1)
    sample = {
        "audio_path": "/elsewhere/one.wav",
        "filename": "one.wav",
        "caption": "rock",
        "lyrics": "La\nla",
        "bpm": 90,
    }
    (tmp_path / "dataset.json").write_text(json.dumps({"samples": [sample]}))
    assert tokenize("--audio", tmp_path / "dataset.json", "--out", tmp_path / "shards") == 0
    assert "as ACE-Step samples (files in column audio_path): 1 clip" in capsys.readouterr().out
    (clip,) = clips(tmp_path / "shards").values()
    assert (clip["text"], clip["lyrics"], clip["bpm"]) == ("rock", "La\nla", 90)


def test_every_format(tmp_path: Path) -> None:
    """Of libsndfile and of PyAV, each read under its own suffix."""
    audio = tmp_path / "audio"
    kinds = {
        "aiff": "AIFF",
        "aif": "AIFF",
        "w64": "W64",
        "caf": "CAF",
        "au": "AU",
        "wav": "WAV",
        "flac": "FLAC",
    }
    for seed, (suffix, kind) in enumerate({**kinds, "ogg": "OGG", "mp3": "MP3", "opus": "OGG"}.items()):
        subtype = {"subtype": "OPUS"} if suffix == "opus" else {}
        noise(audio / f"{suffix}.{suffix}", seed, format=kind, **subtype)
    for seed, (suffix, codec, container) in enumerate(
        [("m4a", "aac", "mp4"), ("mp4", "aac", "mp4"), ("aac", "aac", "adts"), ("webm", "libopus", "webm")],
        start=20,
    ):
        with av.open(str(audio / f"{suffix}.{suffix}"), "w", format=container) as file:
            stream = file.add_stream(codec, rate=48_000, layout="mono")
            samples = 0.1 * np.random.default_rng(seed).standard_normal((1, 48_000)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, 0
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                file.mux(packet)
    names = sorted(path.name for path in audio.iterdir())
    for name in names:
        (audio / name).with_suffix(".txt").write_text("noise")
    assert tokenize("--audio", audio, "--out", tmp_path / "shards", "--strict") == 0
    found = clips(tmp_path / "shards")
    assert sorted(found) == names
    assert all(50 <= clip["frames"] <= 54 for clip in found.values())


def table(folder: Path, header: str, *rows: str) -> Path:
    for number in range(len(rows)):
        noise(folder / f"{number}.wav", number)
    (folder / "songs.csv").write_text(
        "\n".join([header, *(f"{n}.wav,{row}" for n, row in enumerate(rows))]) + "\n"
    )
    return folder / "songs.csv"


@pytest.mark.parametrize(
    ("header", "rows", "words", "message"),
    [
        (
            "path,caption,prompt",
            [",one", ",two", "x,three"],
            (),
            "songs.csv: column caption is empty for 2 of 3 clips; fill it in, or give --caption_from caption to leave these "
            "out, or another column (prompt).",
        ),
        (
            "path,prompt,genre",
            ["x,rock"],
            ("--caption_from", "lyrics"),
            "songs.csv has no lyrics in its first 1 file; give --caption_from one of prompt, genre.",
        ),
        (
            "path,file,text",
            ["other.wav,x"],
            (),
            "names two files, 0.wav in path and other.wav in file; rename one of the",
        ),
    ],
)
def test_bad_columns_are_one_sentence(
    tmp_path: Path, capsys: Any, header: str, rows: list[str], words: tuple[str, ...], message: str
) -> None:
    assert tokenize("--audio", table(tmp_path, header, *rows), "--out", tmp_path / "shards", *words) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "shards").exists()


def test_mostly_empty_captions_can_be_insisted_on(tmp_path: Path) -> None:
    songs = table(tmp_path, "path,caption", "", "", "x")
    assert tokenize("--audio", songs, "--out", tmp_path / "shards", "--caption_from", "caption") == 0
    assert list(clips(tmp_path / "shards")) == ["2.wav"]


def test_captions_beside_the_files_fill_an_empty_column(tmp_path: Path) -> None:
    songs = table(tmp_path, "path,caption", "", "", "x")
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text("beside")
    assert tokenize("--audio", songs, "--out", tmp_path / "shards") == 0
    assert len(clips(tmp_path / "shards")) == 3


def test_columns_are_named_where_none_is_a_caption(tmp_path: Path, capsys: Any) -> None:
    assert (
        tokenize("--audio", table(tmp_path, "path,genre,mood", "rock,calm"), "--out", tmp_path / "shards")
        == 1
    )
    assert (
        "captions: none in the first 1 file; name a column with --caption_from or use several in --caption_template: "
        "genre, mood" in capsys.readouterr().out
    )
