"""`evaluate` without any weights, and the nearest training clips, through the real command line on real files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules.shards.reading import ShardReader
from harness.tones.world import ToneWorld
from magnet_train.cli.main import main

NOWHERE = "nobody/nothing"  # a hub id that is in no cache
RATE = 8000

Evaluate = Callable[..., tuple[int, dict[str, Any]]]


def write_tones(folder: Path, seed: int, clips: int) -> Path:
    """Write captioned clips of 1.28 s."""
    folder.mkdir(parents=True)
    for number, (caption, audio) in enumerate(ToneWorld("default", seed).clips(clips)):
        soundfile.write(folder / f"{number}.wav", audio, RATE)
        (folder / f"{number}.txt").write_text(caption.text)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_tones(tmp_path / "generated", 1, 6), write_tones(tmp_path / "reference", 2, 10)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Forty training clips, as audio and as shards."""
    folder = tmp_path_factory.mktemp("training")
    audio = write_tones(folder / "audio", 3, 40)
    assert tokenize(audio, folder / "shards") == 0
    return audio, folder / "shards"


def tokenize(audio: Path, out: Path, *options: str) -> int:
    return main(["tokenize", "--audio", str(audio), "--out", str(out), "--codec", "quickstart", *options])


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """Run the command where no weights are; gives exit code and the content of its .json."""

    def run(folders: tuple[Path, Path], *options: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "evaluation.json"
        out.unlink(missing_ok=True)
        words = ["--generated", str(folders[0]), "--reference", str(folders[1]), "--out", str(out)]
        models = ["--clap", NOWHERE, "--classifier", NOWHERE, "--device", "cpu"]
        code = main(["evaluate", *words, *models, *options])
        return code, json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}

    return run


def test_without_weights_there_is_a_table_beside_the_reference(folders, evaluate, capsys):
    code, found = evaluate(folders)
    assert code == 0
    assert found["measures"] == {}
    assert found["not_computed"].keys() == {"fad_clap", "clap_score", "kl_ast"}
    sound = found["sound"]
    assert sound["sample_rate"] == RATE
    assert (sound["generated"]["clips"], sound["reference"]["clips"]) == (6, 10)
    assert sound["spectrum"]["equal"]["clips"] == sound["spectrum"]["equal"]["reference_clips"] == 5
    assert sound["log_mel"]["pairs"] == 6
    assert -30 < sound["reference"]["loudness"]["mean"] < 0
    printed = capsys.readouterr().out
    for words in (
        "log-mel (dB) ↓",
        "spectrum (dB) ↓",
        "loudness (LUFS)",
        "silent clips (%)",
        "6 / 10 clips",
    ):
        assert words in printed
    assert "not computed: FAD-CLAP and CLAP score, since --clap" in " ".join(printed.split())
    _, again = evaluate(folders)
    assert again == found


def test_the_same_folder_twice_has_no_distance(folders, evaluate):
    _, found = evaluate((folders[1], folders[1]))
    sound = found["sound"]
    assert sound["log_mel"]["mean"] == sound["spectrum"]["distance"] == 0
    assert sound["log_mel"]["chance"] == sound["log_mel"]["other_real"] > 5
    assert sound["generated"] == sound["reference"]


def test_clipping_silence_and_loudness_are_those_of_the_files(folders, evaluate):
    for file in folders[0].glob("*.wav"):
        audio, _ = soundfile.read(file)
        soundfile.write(file, np.clip(100 * audio, -1, 1), RATE)  # nearly a square
    soundfile.write(folders[0] / "0.wav", np.zeros(2 * RATE), RATE)
    audio, _ = soundfile.read(folders[0] / "1.wav")
    soundfile.write(folders[0] / "1.wav", np.concatenate([audio, np.zeros(len(audio))]), RATE)
    code, found = evaluate(folders)
    assert code == 0
    ours, real = found["sound"]["generated"], found["sound"]["reference"]
    assert ours["full_scale"] > 0.2
    assert real["full_scale"] < 1e-3
    assert ours["silent_clips"] == pytest.approx(1 / 6)
    assert 1.4 / 6 < ours["silent_frames"] < 1.7 / 6
    assert ours["loudness"]["clips"] == 5
    assert ours["loudness"]["mean"] > real["loudness"]["mean"] + 5


def test_full_scale_is_counted_before_channels_are_mixed(folders, evaluate):
    half = np.tile([[1.0, 0.0], [-1.0, 0.0]], (RATE, 1))  # the left channel is at full scale, the mean is not
    for file in folders[0].glob("*.wav"):
        soundfile.write(file, half, RATE)
    _, found = evaluate(folders)
    assert found["sound"]["generated"]["full_scale"] == pytest.approx(0.5)


def test_both_sides_are_heard_at_the_rate_of_the_lower_one(folders, evaluate):
    for file in folders[1].glob("*.wav"):
        audio, _ = soundfile.read(file)
        soundfile.write(file, np.repeat(audio, 4), 4 * RATE)
    _, found = evaluate(folders)
    assert found["sound"]["sample_rate"] == RATE


def write_clicks(path: Path, bpm: float, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = 1e-3 * np.random.default_rng(0).standard_normal(8 * RATE)
    for beat in np.arange(0, 7.9, 60 / bpm):
        audio[int(beat * RATE) : int(beat * RATE) + 80] += 0.5
    soundfile.write(path, audio, RATE)
    path.with_suffix(".txt").write_text(text)


def test_tempi_are_compared_with_captions_and_pairs(evaluate, tmp_path, capsys):
    for name, bpm, played in (("a", 100, 100), ("b", 130, 100), ("c", 170, 170)):
        write_clicks(tmp_path / "generated" / f"{name}.wav", played, f"clicks at {bpm} BPM")
        write_clicks(tmp_path / "reference" / f"{name}.wav", bpm, f"{bpm}bpm clicks")
    write_clicks(tmp_path / "generated" / "d.wav", 90, "clicks")
    _, found = evaluate((tmp_path / "generated", tmp_path / "reference"))
    caption, pair = found["sound"]["tempo_of_caption"], found["sound"]["tempo_of_pair"]
    assert (caption["clips"], pair["clips"]) == (3, 3)
    assert caption["share"] == pair["share"] == pytest.approx(2 / 3)
    assert caption["real"] == pair["real"] == 1
    assert caption["chance"] == pytest.approx(1 / 6)  # b's tempo is that of a
    assert found["sound"]["generated"]["with_tempo"] == 1
    assert "tempo, caption ↑" in capsys.readouterr().out


def test_without_librosa_the_rest_is_measured(folders, evaluate, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, found = evaluate(folders)
    assert code == 0
    assert found["sound"]["tempo_of_pair"] is None
    assert 'pip install "magnet-train[describe]"' in found["sound"]["no_tempo"]
    assert "no tempo is compared: the tempo needs librosa" in " ".join(capsys.readouterr().out.split())


def test_nothing_that_can_be_read_is_a_failure(folders, evaluate, capsys):
    for file in folders[0].glob("*.wav"):
        file.write_bytes(b"RIFF no more")
    code, found = evaluate(folders)
    assert code == 1
    assert "sound" not in found
    assert "no file in" in found["not_computed"]["sound"]
    assert "none of the measures could be computed" in capsys.readouterr().err


def test_a_copied_training_clip_is_found(folders, training, evaluate, capsys):
    shutil.copy(training[0] / "17.wav", folders[0] / "copy.wav")
    code, found = evaluate(folders, "--shards", str(training[1]))
    assert code == 0
    distance = found["training_distance"]
    (name, nearest), *others = distance["nearest"]
    key = next(
        s.key
        for s in map(ShardReader(training[1]).__getitem__, range(40))
        if s.metadata["source"] == "17.wav"
    )
    assert (name, nearest) == ("copy.wav", {"distance": 0.0, "key": key, "frame": 0})
    assert len(others) == 6
    assert all(near["distance"] > 2 * distance["copies"]["median"] for _, near in others)
    assert distance["training_clips"] == 40
    assert distance["held_out"]["clips"] == 10
    assert distance["held_out_source"] == str(folders[1])
    assert distance["held_out"]["median"] > 2 * distance["copies"]["median"]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"nearest: copy.wav at 0.000 from 0.0 s of {key}" in printed
    assert "of 7 generated clips nearer than 95 % of the held-out ones" in printed


def test_copies_that_went_through_the_codec_are_as_near_as_copies_are(training, evaluate, tmp_path):
    """What a model that copies makes: the tokens of training clips, decoded and written."""
    import torch

    from magnet_train.codecs import load_codec

    codec, reader = load_codec("quickstart"), ShardReader(training[1])
    (tmp_path / "generated").mkdir()
    for number in range(8):
        audio = codec.decode(torch.from_numpy(reader[number].tokens.astype(np.int64))[None])[0, 0]
        soundfile.write(tmp_path / "generated" / f"{number}.wav", audio.numpy(), RATE)
    real = write_tones(tmp_path / "reference", 2, 10)
    _, found = evaluate((tmp_path / "generated", real), "--shards", str(training[1]))
    distance = found["training_distance"]
    assert distance["generated"]["median"] < 0.5 * distance["held_out"]["median"]
    assert distance["nearer_than_held_out"] >= 6
    for name, near in distance["nearest"][:4]:
        assert near["key"] == reader[int(name[0])].key


def test_held_out_shards_take_the_place_of_the_reference(folders, training, evaluate, tmp_path):
    assert tokenize(folders[1], tmp_path / "val") == 0
    options = ("--shards", str(training[1]), "--val_shards", str(tmp_path / "val"))
    _, by_shards = evaluate(folders, *options)
    _, by_reference = evaluate(folders, "--shards", str(training[1]))
    assert by_shards["training_distance"]["held_out_source"] == str(tmp_path / "val")
    # the same clips, tokenized there and here
    assert by_shards["training_distance"]["held_out"] == by_reference["training_distance"]["held_out"]


def test_held_out_clips_that_the_model_was_trained_on_are_noticed(folders, training, evaluate, capsys):
    evaluate((folders[0], training[0]), "--shards", str(training[1]))
    printed = " ".join(capsys.readouterr().out.split())
    assert "as near to the training clips as copies are" in printed


def test_a_damaged_training_clip_is_left_out_and_named(folders, training, evaluate, tmp_path, capsys):
    shards = Path(shutil.copytree(training[1], tmp_path / "shards"))
    row = ShardReader(shards).index[0]
    with (shards / "shard-000000.tar").open("r+b") as file:
        file.seek(int(row["npy_offset"]))
        file.write(b"nothing")
    code, found = evaluate(folders, "--shards", str(shards))
    assert code == 0
    assert found["training_distance"]["training_clips"] == 39
    assert found["training_distance"]["damaged_clips"] == 1
    assert "is damaged" in found["training_distance"]["damage"]
    assert "1 training clip left out" in capsys.readouterr().out


def test_clips_of_no_length_have_no_training_distance(folders, training, evaluate):
    for file in folders[0].glob("*.wav"):
        soundfile.write(file, np.array([0.5, -0.5]), RATE)
    code, found = evaluate(folders, "--shards", str(training[1]))
    assert code == 0
    assert "has a frame of codec quickstart" in found["not_computed"]["training_distance"]
    assert found["sound"]["generated"]["clips"] == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--val_shards", "x"), "--val_shards needs --shards DIR"),
        (("--shards", "/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_are_one_sentence(options, words, folders, evaluate, capsys):
    code, found = evaluate(folders, *options)
    assert (code, found) == (1, {})
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("magnet-train: error: ")
    assert words in line


def test_tokens_of_another_codec_are_refused(folders, training, token_shards, evaluate, capsys):
    code, _ = evaluate(folders, "--shards", str(token_shards))  # whose hash is of no weights
    assert code == 1
    assert "has other weights than the one that made the tokens" in capsys.readouterr().err
    code, _ = evaluate(folders, "--shards", str(training[1]), "--val_shards", str(token_shards))
    assert code == 1
    assert "tokenize both with the same codec" in capsys.readouterr().err
