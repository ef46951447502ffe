"""A musician's controls through the real command line: what is asked for is in the files and in results.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from magnet_train.cli.main import main

RATE = 8000  # of the packaged codec


def generate(model: Path, out: Path, *options: str) -> int:
    return main(["generate", "--model", str(model), "--out", str(out), *options])


def results_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def samples_of(out: Path, number: int = 0) -> np.ndarray:
    samples, _ = soundfile.read(out / results_of(out)[number]["file"], dtype="int16")
    return samples


def write_song(path: Path, rate: int = 44_100, seconds: float = 1.5, channels: int = 2) -> Path:
    rng = np.random.default_rng(len(path.name))
    path.parent.mkdir(exist_ok=True)
    soundfile.write(
        path, 0.2 * rng.standard_normal((round(seconds * rate), channels)), rate, subtype="PCM_16"
    )
    return path


def test_without_new_options_clips_and_records_are_as_before(checkpoint: Path, tmp_path: Path) -> None:
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute") == 0
    (result,) = results_of(tmp_path / "clips")
    names = "file id text seed index model precision fingerprint decoding seconds"
    assert list(result) == names.split()
    assert result["file"] == "0_a_flute.wav"


def test_a_negative_caption_is_recorded_and_makes_another_clip(checkpoint: Path, tmp_path: Path) -> None:
    for name, options in (("plain", []), ("without", ["--negative", "a low bell"])):
        assert generate(checkpoint, tmp_path / name, "--text", "a flute", *options) == 0
    assert results_of(tmp_path / "without")[0]["negative"] == "a low bell"
    assert not np.array_equal(samples_of(tmp_path / "plain"), samples_of(tmp_path / "without"))


def test_lines_of_prompts_have_seeds_and_negatives_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    lines = [
        {"text": "a flute", "seed": 7},
        {"text": "a flute"},
        {"text": "a low bell", "seed": 2**63 - 1, "negative": "a flute"},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    together = tmp_path / "together"
    assert (
        generate(checkpoint, together, "--prompts", str(prompts), "--seed", "5", "--negative", "a voice") == 0
    )
    results = results_of(together)
    assert [(r["seed"], r["index"], r["negative"]) for r in results] == [
        (7, 0, "a voice"),
        (5, 1, "a voice"),
        (2**63 - 1, 0, "a flute"),
    ]
    assert [r["file"][:2] for r in results] == ["0_", "1_", "2_"]
    for number, result in enumerate(results):
        alone = tmp_path / f"alone_{number}"
        index = ["--first_index", str(result["index"])] if result["index"] else []
        options = [
            "--text",
            result["text"],
            "--seed",
            str(result["seed"]),
            "--negative",
            result["negative"],
            *index,
        ]
        assert generate(checkpoint, alone, *options) == 0
        (file,) = alone.glob("*.wav")
        assert file.read_bytes() == (together / result["file"]).read_bytes()


@pytest.mark.parametrize(
    "field", ['"seed": -1', '"seed": 1.5', '"seed": true', '"seed": "7"', f'"seed": {2**63}', '"negative": 3']
)
def test_fields_of_prompts_that_cannot_be_used(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"text": "a flute", {field}}}\n')
    assert generate(checkpoint, tmp_path / "clips", "--prompts", str(prompts)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"line 1 of {prompts}" in error
    assert not (tmp_path / "clips").exists()


def test_loudness_is_reached_or_the_shortfall_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(checkpoint, tmp_path / "quiet", "--text", "a flute", "--loudness", "-40") == 0
    assert "stayed below" not in capsys.readouterr().out
    assert generate(checkpoint, tmp_path / "loud", "--text", "a flute", "--loudness", "-0.5") == 0
    assert "1 clip stayed below -0.5 LUFS (the lowest at " in capsys.readouterr().out
    assert [results_of(tmp_path / name)[0]["loudness"] for name in ("quiet", "loud")] == [-40.0, -0.5]
    peaks = [np.abs(samples_of(tmp_path / name).astype(float)).max() / 2**15 for name in ("quiet", "loud")]
    assert peaks[0] < 0.1
    assert peaks[1] == pytest.approx(10 ** (-1 / 20), abs=1e-3)


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg"])
def test_files_have_the_format_asked_for_and_resume(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    options = ["--text", "a flute", "--text", "a low bell", "--format", kind]
    assert generate(checkpoint, tmp_path / "clips", *options) == 0
    files = [tmp_path / "clips" / result["file"] for result in results_of(tmp_path / "clips")]
    assert [file.suffix for file in files] == [f".{kind}"] * 2
    assert {soundfile.info(file).format for file in files} == {kind.upper()}
    files[1].unlink()
    capsys.readouterr()
    assert generate(checkpoint, tmp_path / "clips", *options) == 0
    assert "wrote 1 clip " in capsys.readouterr().out
    assert files[1].is_file()


def test_a_loop_of_bars_has_their_samples(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--text", "a flute", "--loop", "--bars", "1", "--bpm", "123"]
    assert generate(checkpoint, tmp_path / "clips", *options) == 0
    samples = round(240 / 123 * RATE)
    assert samples_of(tmp_path / "clips").shape == (samples,)
    (result,) = results_of(tmp_path / "clips")
    assert (result["bars"], result["bpm"], result["seconds"]) == (1, 123.0, samples / RATE)
    cents = -1200 * np.log2(samples / (98 * 160))
    assert (
        f"1 bar at 123 bpm are {samples:,} samples of 8,000 Hz, for which the pitch changed by {cents:+.1f}"
        in (capsys.readouterr().out)
    )


def test_a_folder_is_edited_file_by_file(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = tmp_path / "songs"
    for name, channels in (("b.wav", 2), ("a.flac", 1), ("c d.wav", 2)):
        write_song(songs / name, channels=channels)
    (songs / "notes.txt").write_text("not audio")
    options = ["--edit", str(songs), "--region", "0.5:0.7", "--text", "a flute"]
    assert generate(checkpoint, tmp_path / "edited", *options) == 0
    printed = capsys.readouterr().out
    assert "wrote 3 clips (4.5 s of audio" in printed
    assert "44.1 kHz, mono, 16-bit FLAC; 44.1 kHz, stereo, 16-bit WAV" in printed
    assert (
        "the model is mono: in a stereo recording both channels of the region have the same sound" in printed
    )
    results = results_of(tmp_path / "edited")
    assert [result["file"] for result in results] == ["a.flac", "b.wav", "c d.wav"]
    assert [result["edit"] for result in results] == [str(songs / result["file"]) for result in results]
    assert [result["index"] for result in results] == [0, 1, 2]
    for result in results:
        before, _ = soundfile.read(songs / result["file"], dtype="int16", always_2d=True)
        after, rate = soundfile.read(tmp_path / "edited" / result["file"], dtype="int16", always_2d=True)
        changed = np.flatnonzero((after != before).any(axis=1)) / rate
        assert 0.49 <= changed.min() < 0.51
        assert 0.69 < changed.max() <= 0.71
    one = ["--edit", str(songs / "b.wav"), "--first_index", "1", *options[2:]]
    assert generate(checkpoint, tmp_path / "one", *one) == 0
    (alone,) = (tmp_path / "one").glob("*.wav")
    assert alone.name == "1_a_flute.wav"
    assert alone.read_bytes() == (tmp_path / "edited" / "b.wav").read_bytes()


def test_a_folder_to_edit_may_hold_what_only_pyav_reads(checkpoint: Path, tmp_path: Path) -> None:
    song = write_song(tmp_path / "song.wav", channels=1)
    samples, rate = soundfile.read(song, dtype="float32")
    (tmp_path / "songs").mkdir()
    with av.open(tmp_path / "songs" / "a.m4a", "w") as file:
        stream = file.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
    options = ["--edit", str(tmp_path / "songs"), "--region", "0.5:0.7", "--text", "a flute"]
    assert generate(checkpoint, tmp_path / "edited", *options) == 0
    assert [result["file"] for result in results_of(tmp_path / "edited")] == ["a.wav"]


def test_an_edited_folder_resumes_and_knows_a_changed_recording(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = tmp_path / "songs"
    for name in ("a.wav", "b.wav"):
        write_song(songs / name)
    (songs / "._a.wav").write_text("what a Mac leaves beside a file")
    (songs / "folder.wav").mkdir()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "a flute", "id": "../up"}\n{"text": "a low bell", "id": "../up"}\n')
    options = ["--edit", str(songs), "--region", "0.5:0.7", "--prompts", str(prompts)]
    assert generate(checkpoint, tmp_path / "edited", *options) == 0
    names = [result["file"] for result in results_of(tmp_path / "edited")]
    assert names == ["a_0.wav", "a_1.wav", "b_0.wav", "b_1.wav"]
    before = {name: (tmp_path / "edited" / name).read_bytes() for name in names}
    (tmp_path / "edited" / "a_1.wav").unlink()
    assert generate(checkpoint, tmp_path / "edited", *options) == 0
    assert {name: (tmp_path / "edited" / name).read_bytes() for name in names} == before
    write_song(songs / "b.wav", seconds=1.6)
    assert generate(checkpoint, tmp_path / "edited", *options) == 1
    assert "another model or recording" in capsys.readouterr().err


EDIT = ["--region", "0.5:0.7", "--text", "a flute"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--text", "a flute", "--negative", "x", "--cfg", "1"], "raise max_cfg_coef (--cfg) above 1"),
        (["--text", "a flute", "--negative", "\udcff"], "--negative is not text"),
        (["--text", "a flute", "--loudness", "3"], "--loudness 3 must lie in -60..0"),
        (["--text", "a flute", "--loudness", "nan"], "--loudness nan must lie"),
        (["--text", "a flute", "--bars", "4", "--bpm", "120"], "give --loop"),
        (["--text", "a flute", "--loop", "--bars", "4"], "--bpm BPM go together"),
        (["--text", "a flute", "--loop", "--bars", "4", "--bpm", "0"], "4 bars at 0 bpm"),
        (
            ["--text", "a flute", "--loop", "--bars", "1", "--bpm", "120", "--seconds", "2"],
            "leave out --seconds",
        ),
        (["--edit", "songs", *EDIT, "--loudness", "-14"], "leave out --loudness"),
        (["--edit", "songs", *EDIT, "--format", "mp3"], "--format wav or flac"),
        (["--edit", "empty", *EDIT], "empty holds no audio files"),
        (["--edit", "short", *EDIT], "b.wav: the region from 0.5 to 0.7 s is not within"),
        (["--edit", "twins", *EDIT], "would both become a.wav; rename one"),
        (["--edit", "bad", *EDIT], "x.wav"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_song(Path("songs/a.wav"))
    Path("empty").mkdir()
    write_song(Path("short/a.wav"))
    write_song(Path("short/b.wav"), seconds=0.6)
    write_song(Path("twins/a.wav"))
    soundfile.write("twins/a.ogg", np.zeros(44_100), 44_100)
    Path("bad").mkdir()
    Path("bad/x.wav").write_text("no sound")
    assert generate(checkpoint, Path("clips"), *options) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("magnet-train: error: ")
    assert named in printed[-1]
    assert not Path("clips").exists()


def test_a_folder_is_not_edited_in_place(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write_song(tmp_path / "songs" / "a.wav")
    before = song.read_bytes()
    assert generate(checkpoint, song.parent, "--edit", str(song.parent), *EDIT) == 1
    assert "is the folder to edit" in capsys.readouterr().err
    assert song.read_bytes() == before
    assert [path.name for path in song.parent.iterdir()] == ["a.wav"]
