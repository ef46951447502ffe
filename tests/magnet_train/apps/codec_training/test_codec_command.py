"""`magnet-train codec`: a folder of audio becomes a codec that the other commands take, or one sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from magnet_train.apps.codec_training.excerpts import _spans, _split, draw_excerpts
from magnet_train.apps.codec_training.measures import measure, si_sdr
from magnet_train.apps.codec_training.recipe import DecoderTraining, start_codec
from magnet_train.apps.codec_training.run import recipe_of
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.storage.parquet import _Cells

SMALL = ("--sample_rate", "8000", "--codebooks", "2", "--card", "16", "--minutes", "0.1")
NEEDED = 16 * 10 / 50  # seconds
RATE = 44_100


def phrase(rng: np.random.Generator, seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    """Synthesise plucked notes over a beat of noise, float [samples, 2]."""
    samples = int(seconds * rate)
    sound = np.zeros((samples, 2))
    for _ in range(int(6 * seconds)):
        start, length = int(rng.integers(samples)), int(0.4 * rate)
        time_ = np.arange(min(length, samples - start)) / rate
        pitch = 110 * 2 ** (rng.integers(36) / 12)
        tone = sum(np.sin(2 * np.pi * pitch * n * time_) / n for n in range(1, 6)) * np.exp(-6 * time_)
        noise = rng.standard_normal(len(time_)) * np.exp(-40 * time_)
        sound[start : start + len(time_)] += np.outer(tone + noise, rng.uniform(0.05, 0.3, 2))
    return sound / max(1.0, np.abs(sound).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve phrases at 44.1 kHz in stereo, wav and flac, beside a text and a broken file."""
    audio = tmp_path_factory.mktemp("audio")
    (audio / "more").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        place = audio if number % 2 else audio / "more"
        soundfile.write(place / f"phrase {number}.{('wav', 'flac')[number % 2]}", phrase(rng), RATE)
    (audio / "broken.flac").write_bytes(b"fLaC" + bytes(200))
    (audio / "notes.txt").write_text("no audio")
    return audio


def codec(audio: Path, out: Path, *options: str) -> int:
    return main(["codec", "--audio", str(audio), "--out", str(out), *SMALL, *options])


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "my_codec"
    assert codec(folder, out, "--steps", "8") == 0
    return out


def test_a_folder_becomes_a_codec_like_any_other(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == [
        "config.json", "model.safetensors", "report.html", "training.json",
    ]  # fmt: skip
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    loaded = load_codec(str(made))
    assert (loaded.sample_rate, loaded.channels, loaded.frame_rate) == (8000, 1, 50.0)
    assert (loaded.n_q, loaded.card) == (2, 16)
    tokens = loaded.encode(torch.zeros(1, 1, 1600))
    assert tokens.shape == (1, 2, 10)
    assert loaded.decode(tokens).shape == (1, 1, 1600)
    record = json.loads((made / "training.json").read_text())
    assert record["sha256"] == loaded.sha256
    assert list(record["left_out"]) == ["broken.flac"]
    assert record["measures"]["frames"] == 2 * 150  # two files were held out
    assert all(0 < used <= 16 for used in record["measures"]["entries_used"])


def test_the_page_needs_nothing_else(made: Path) -> None:
    page = (made / "report.html").read_text()
    assert page.count("<audio") == 4
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert "not a general codec" in page
    record = json.loads((made / "training.json").read_text())
    assert f"{record['measures']['si_sdr']:.1f} dB" in page


@pytest.mark.slow
def test_the_page_plays_in_chromium(made: Path, open_from_disk) -> None:
    seconds, _ = open_from_disk(made / "report.html")
    assert seconds == pytest.approx([3.0] * 4, abs=0.05)


def test_steps_and_seed_give_the_same_bytes(folder: Path, made: Path, tmp_path: Path) -> None:
    record = json.loads((made / "training.json").read_text())
    words = record["command"].split()
    assert words[:2] == ["magnet-train", "codec"]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert main(words[1:]) == 0
    assert codec(folder, tmp_path / "other", "--steps", "8", "--seed", "1") == 0
    weights = [path / "model.safetensors" for path in (made, tmp_path / "again", tmp_path / "other")]
    first, again, other = (path.read_bytes() for path in weights)
    assert first == again
    assert first != other


def test_without_steps_the_minutes_are_filled(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert codec(folder, tmp_path / "timed") == 0
    steps = json.loads((tmp_path / "timed" / "training.json").read_text())["steps"]
    assert steps >= 1
    assert ("give more --minutes" in capsys.readouterr().out) == (steps < 100)


def silence(path: Path) -> None:
    for number in range(3):
        soundfile.write(path / f"{number}.wav", np.full(8 * RATE, 0.1 * number), RATE)


def too_little(path: Path) -> None:
    soundfile.write(path / "one.wav", phrase(np.random.default_rng(1), 1.1), RATE)


def one_tone(path: Path) -> None:
    for number in range(6):
        time_ = np.arange(4 * RATE) / RATE
        soundfile.write(path / f"{number}.wav", 0.5 * np.sin(2 * np.pi * 220 * time_ + number), RATE)


def low_rate(path: Path) -> None:
    for number in range(6):
        soundfile.write(path / f"{number}.wav", phrase(np.random.default_rng(number), rate=4000), 4000)


def unreadable(path: Path) -> None:
    for number in range(6):
        (path / f"{number}.wav").write_bytes(bytes(range(200)))


@pytest.mark.parametrize(
    ("fill", "sentence"),
    [
        (silence, "holds only silence"),
        (
            too_little,
            rf"holds \d s of sound to train on, and codebooks of 16 entries need {NEEDED:.0f} s; add",
        ),
        (one_tone, r"repeats few sounds \(1 that differ by more than 3 dB\)"),
        (low_rate, "have at most 4000 Hz.* record at 8000 Hz or more"),
        (unreadable, r"no file in .* can be read, for example 0\.wav"),
        (lambda path: None, "holds no audio"),
    ],
)
def test_what_makes_no_codec_is_one_sentence(
    fill, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    fill(audio)
    assert codec(audio, tmp_path / "my_codec") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert re.search(sentence, line), line
    assert list(tmp_path.iterdir()) == [audio]


def test_a_folder_that_suffices_for_a_smaller_codec_is_told_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert codec(folder, tmp_path / "my_codec", "--card", "1024") == 1
    error = capsys.readouterr().err
    assert "need 205 s; add recordings, or give --card 128." in error


def test_a_rate_above_that_of_the_files_names_one_that_they_have(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert codec(folder, tmp_path / "my_codec", "--sample_rate", "48000") == 1
    assert re.search("at most 44100 Hz.*; give --sample_rate 44100.", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_codec").mkdir()
    (tmp_path / "my_codec" / "mine.txt").write_text("mine")
    assert codec(folder, tmp_path / "my_codec") == 1
    assert "holds something already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "my_codec").iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    words = [
        "codec",
        "--audio",
        str(folder),
        "--out",
        str(tmp_path / "my_codec"),
        *SMALL,
        "--steps",
        "100000",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "magnet_train", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2)
        os.kill(process.pid, number)
        assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []


def draw(folder: Path, seconds: float = 60.0, seed: int = 0):
    return draw_excerpts(folder, recipe_of(8000, 2, 16), seconds, seed, lambda _: None)


def test_clips_come_from_all_files_but_the_held_out_ones(folder: Path) -> None:
    drawn = draw(folder)
    assert drawn.clips.shape == (
        10 * 3 + 1,
        48 * 160,
    )  # three clips of .96 s from each of ten files, and silence
    assert (drawn.clips == 0).all(dim=1).sum() == 1
    assert drawn.seconds == pytest.approx(28.8)
    assert len(drawn.held_out) == 2
    assert all(len(audio) == 24_000 for audio in drawn.held_out.values())
    assert torch.equal(draw(folder).clips, drawn.clips)
    assert draw(folder, seed=1).held_out.keys() != drawn.held_out.keys()
    assert draw(folder, seconds=9.6).clips.shape[0] == 11


def test_of_few_files_the_ends_are_held_out(tmp_path: Path) -> None:
    time_ = np.arange(40 * RATE) / RATE
    late = time_ > 36
    sound = np.where(
        late, 0.5 * np.sin(2 * np.pi * 3000 * time_), phrase(np.random.default_rng(2), 40.0)[:, 0]
    )
    soundfile.write(tmp_path / "tape.wav", sound, RATE)
    drawn = draw(tmp_path)
    (end,) = drawn.held_out.values()
    spectrum = torch.fft.rfft(end).abs()
    assert 8000 * int(spectrum.argmax()) / len(end) == pytest.approx(3000, abs=5)
    assert drawn.seconds == pytest.approx(36, abs=1)


def test_a_part_of_a_held_out_file_is_not_trained_on(folder: Path, tmp_path: Path) -> None:
    names = sorted(map(str, folder.rglob("phrase*")))
    rows = [f"{name},{start},{start + 1}" for name in names for start in (0, 1, 2)]
    (tmp_path / "parts.csv").write_text("\n".join(["path,start,end", *rows]) + "\n")
    spans, _ = _spans(tmp_path / "parts.csv", 8000, {})
    training, held_out = _split(spans, np.random.default_rng(0))
    assert len(held_out) == 2
    assert len(training) == 3 * (len(names) - 2)
    assert not {span.file.path for span in training} & {span.file.path for span in held_out}


def test_a_parquet_is_read_forwards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row before the last one that was read takes reading the table again from its beginning."""
    rows = [{"bytes": path.read_bytes()} for path in sorted(folder.rglob("phrase*"))]
    pq.write_table(pa.table({"audio": rows}), tmp_path / "rows.parquet")
    opened = []
    open_group = _Cells._open_group
    monkeypatch.setattr(
        _Cells, "_open_group", lambda cells, row: (opened.append(row), open_group(cells, row))[1]
    )
    assert len(draw(tmp_path, 20.0).held_out) == 2
    assert len(opened) <= 5  # for the headers, the clips and two excerpts


def test_sounds_shorter_than_a_clip_and_files_of_a_lower_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for number in range(20):
        soundfile.write(tmp_path / f"hit {number}.wav", phrase(rng, 0.3), RATE)
    soundfile.write(tmp_path / "old.wav", phrase(rng, 3.0, 6000), 6000)
    drawn = draw(tmp_path)
    assert len(drawn.clips) == 18 + 1
    assert (drawn.clips[:, 2401:] == 0).all()
    assert list(drawn.left_out) == ["old.wav"]


class Echo:
    """A codec whose decoder gives what `output` makes of the audio."""

    sample_rate, card = 8000, 4

    def __init__(self, output) -> None:
        self.output = output

    def encode(self, audio):
        self.audio = audio
        return torch.arange(audio.shape[-1] // 160).remainder(4).expand(1, 2, -1)

    def decode(self, tokens):
        return self.output(self.audio)


def test_measures_tell_the_same_sound_from_another(folder: Path) -> None:
    excerpts = draw(folder).held_out
    same, decoded = measure(Echo(lambda audio: audio), excerpts)
    assert decoded.keys() == excerpts.keys()
    assert (same.log_mel, same.entries_used, same.frames) == (0, [4, 4], 300)
    assert same.si_sdr > 60
    assert same.onset == pytest.approx(1)
    assert same.chroma == pytest.approx(1)
    assert same.onset_by_chance < 0.5
    louder, _ = measure(Echo(lambda audio: 2 * audio), excerpts)
    assert louder.si_sdr > 60
    assert 3 < louder.log_mel <= 6.1
    torch.manual_seed(0)
    noise, _ = measure(Echo(torch.randn_like), excerpts)
    assert noise.si_sdr < -10
    assert noise.onset < 0.4
    assert noise.log_mel > 10
    assert si_sdr(torch.zeros(10), torch.ones(10)) <= 0


def test_timing_a_step_changes_nothing(folder: Path) -> None:
    torch.manual_seed(0)
    clips, recipe = draw(folder).clips, recipe_of(8000, 2, 16)
    training = DecoderTraining(start_codec(clips, recipe), [clips], recipe)
    weights = {name: value.clone() for name, value in training.model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert training.seconds_per_step() > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in training.model.state_dict().items())
