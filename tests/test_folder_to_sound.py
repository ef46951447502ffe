"""A folder as people have them, to a model that makes sound from it: the commands of the README, in processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parent.parent


def magnet_train(*words: str, code: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "magnet_train", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@pytest.fixture
def folder(tmp_path) -> Path:
    """wav, flac, ogg and mp3; four rates; mono and stereo; 0.3 to 20 s; captions in .txt and .json; trouble."""
    audio = tmp_path / "audio"
    (audio / "album one").mkdir(parents=True)
    rng = np.random.default_rng(0)
    kinds = [
        ("wav", 44100, 2, 3.0),
        ("flac", 48000, 1, 20.0),
        ("ogg", 22050, 1, 5.0),
        ("mp3", 16000, 2, 4.0),
        ("wav", 8000, 1, 0.3),
    ]
    for index in range(15):
        suffix, rate, channels, seconds = kinds[index % len(kinds)]
        time = np.arange(int(rate * seconds)) / rate
        tone = np.sin(2 * np.pi * rng.uniform(200, 900) * time) * rng.uniform(0.2, 0.6)
        sound = np.stack([tone * (1 + channel) / 2 for channel in range(channels)], axis=1)
        path = audio / ("album one" if index % 2 else ".") / f"take {index}.{suffix}"
        soundfile.write(path, sound + 0.01 * rng.standard_normal(sound.shape), rate)
        if index % 3:
            path.with_suffix(".txt").write_text(f"a tone, take {index}\n")
        else:
            path.with_suffix(".json").write_text(
                json.dumps({"description": f"a tone, take {index}", "bpm": 90})
            )
    (audio / "broken.flac").write_bytes(b"fLaC" + bytes(range(200)))
    (audio / "broken.txt").write_text("a file that stopped halfway\n")
    soundfile.write(audio / "silence.wav", np.zeros(16000), 16000)
    (audio / "silence.txt").write_text("nothing at all\n")
    return audio


@pytest.mark.slow
def test_mixed_folder_to_sound(folder, tmp_path):
    shards, run, clips = str(tmp_path / "shards"), str(tmp_path / "run"), tmp_path / "clips"
    told = magnet_train("tokenize", "--audio", str(folder), "--out", shards, "--codec", "quickstart").stdout
    assert "15 clips" in told
    report = [json.loads(line) for line in (tmp_path / "shards" / "report.jsonl").read_text().splitlines()]
    assert {Path(str(row.get("file", row.get("path")))).name for row in report} == {
        "broken.flac",
        "silence.wav",
    }
    assert "15 clips" in magnet_train("verify", shards).stdout

    small = ["-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml"]
    small += ["--data.shards", shards, "--data.batch_size", "4", "--trainer.max_steps", "50"]
    magnet_train("fit", *small, "--trainer.val_check_interval", "25", "--run", run)
    magnet_train("inspect", f"{run}/last.ckpt")
    magnet_train("export", "--checkpoint", f"{run}/last.ckpt", "--out", str(tmp_path / "model"))
    magnet_train(
        *("generate", "--model", str(tmp_path / "model"), "--out", str(clips)),
        *("--text", "a tone, take 3", "--text", "a calm flute", "--seed", "1"),
    )
    for line in (clips / "results.jsonl").read_text().splitlines():
        sound, rate = soundfile.read(clips / json.loads(line)["file"])
        assert rate == 8000
        assert len(sound) == 64 * 160  # 1.28 s, whole frames
        assert np.isfinite(sound).all()
        assert np.abs(sound).max() > 0.01


@pytest.mark.slow
def test_the_quickstart_runs_through(tmp_path):
    """With a handful of steps it cannot learn; it has to say so, and to write its report and page."""
    out = tmp_path / "quickstart"
    told = magnet_train("quickstart", "--out", str(out), "--fit", "--trainer.max_steps", "10").stdout
    assert told.count("$ magnet-train") >= 7
    report = json.loads((out / "report.json").read_text())
    wanted = {
        "minutes",
        "n",
        "accuracy",
        "unseen",
        "ceiling",
        "chance",
        "unconditional",
        "val_loss_per_codebook",
    }
    assert wanted <= report.keys()
    assert report["n"] >= 200
    assert min(report["ceiling"].values()) >= 0.95
    assert report["accuracy"]["root"] < 0.5
    assert (out / "index.html").is_file()


@pytest.fixture
def music(tmp_path) -> Path:
    """Plucked phrases, pads and beats at 44.1 kHz in stereo, wav and flac, with captions."""
    audio, rate, seconds = tmp_path / "my_folder", 44_100, 6
    audio.mkdir()
    rng = np.random.default_rng(0)
    time = np.arange(rate * seconds) / rate
    for number in range(18):
        kind, bpm = ("pluck", "pad", "beat")[number % 3], (90, 120, 150)[number // 3 % 3]
        sound = np.zeros((len(time), 2))
        for start in np.arange(0, seconds, 60 / bpm):
            since = np.clip(time - start, 0, None)
            pitch = 110 * 2 ** (rng.choice([0, 3, 5, 7, 10, 12, 15]) / 12)
            tone = sum(np.sin(2 * np.pi * pitch * n * since) / n for n in (1, 2, 3, 4))
            decay = {"pluck": np.exp(-5 * since), "pad": np.exp(-since), "beat": np.exp(-30 * since)}[kind]
            raw = rng.standard_normal(len(time)) if kind == "beat" else tone
            sound += np.outer(raw * decay * (time >= start), rng.uniform(0.1, 0.3, 2))
        path = audio / f"{kind} {number}.{('wav', 'flac')[number % 2]}"
        soundfile.write(path, 0.7 * sound / np.abs(sound).max(), rate)
        path.with_suffix(".txt").write_text(f"a {kind} at {bpm} bpm\n")
    return audio


@pytest.mark.slow
def test_own_codec_and_own_words_to_sound_without_a_network(music, tmp_path):
    """The offline lines of the README, with fewer minutes and a smaller model."""
    codec, shards, run, clips = (str(tmp_path / name) for name in ("my_codec", "shards", "run", "clips"))
    told = magnet_train(
        *(
            "codec",
            "--audio",
            str(music),
            "--out",
            codec,
            "--card",
            "128",
            "--minutes",
            "0.2",
            "--steps",
            "150",
        )
    ).stdout
    assert "18 files, 150 steps" in told
    measures = json.loads((tmp_path / "my_codec" / "training.json").read_text())["measures"]
    assert measures["onset"] > measures["onset_by_chance"] + 0.2
    assert measures["chroma"] > measures["chroma_by_chance"] + 0.2
    assert min(measures["entries_used"]) > 20

    magnet_train("tokenize", "--audio", str(music), "--out", shards, "--codec", codec)
    assert "18 clips" in magnet_train("verify", shards).stdout
    configs = ("base", "first_model", "text/words", "trainer/cpu")
    small = [word for name in configs for word in ("-c", f"configs/{name}.yaml")]
    small += ["--data.shards", shards, "--data.batch_size", "4", "--data.segment_duration", "2"]
    small += [
        "--model.lm.dim",
        "64",
        "--model.lm.num_layers",
        "2",
        "--model.decoding.decoding_steps",
        "[4,2,2,2]",
    ]
    small += ["--trainer.max_steps", "20", "--trainer.val_check_interval", "20"]
    told = magnet_train("fit", *small, "--run", run).stdout
    assert "vocabulary  9 words" in told  # a, at, bpm, three sounds, three tempos
    words = ["--text", "a pluck at 90 bpm", "--text", "a trumpet at 90 bpm"]
    made = magnet_train("generate", "--model", f"{run}/last.ckpt", *words, "--out", clips)
    assert "vocabulary lacks 'trumpet'" in made.stderr
    for line in (tmp_path / "clips" / "results.jsonl").read_text().splitlines():
        sound, rate = soundfile.read(tmp_path / "clips" / json.loads(line)["file"])
        assert (rate, len(sound)) == (16_000, 32_000)
        assert np.abs(sound).max() > 0.005
