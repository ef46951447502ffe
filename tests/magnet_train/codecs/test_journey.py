"""Each class of codec through the commands: tokenize, fit, generate, export; the export makes the same clip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from random_codecs import KINDS, music

from datamodules.shards.manifest import read_manifest
from magnet_train import Magnet
from magnet_train.audio import write_audio
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.errors import UserError

SMALL = (
    *(
        "-c",
        "configs/base.yaml",
        "-c",
        "configs/trainer/cpu.yaml",
        "--model.text",
        "magnet_train.text.WordText",
    ),
    *(
        "--model.text.dim",
        "8",
        "--model.lm.dim",
        "16",
        "--model.lm.num_heads",
        "2",
        "--model.lm.num_layers",
        "1",
    ),
    *("--model.warmup_steps", "1", "--data.segment_duration", "1.0", "--data.batch_size", "2"),
    *("--data.num_workers", "0", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"),
    *("--trainer.val_check_interval", "2", "--model.sample_prompts", '["a low tone"]'),
)
# Options of tokenize; then streams, K, span_len, subcodes_context, and decoding_steps of the trained model.
JOURNEYS: dict[str, tuple[str, tuple[str, ...], tuple[Any, ...]]] = {
    "encodec": ("encodec", (), (1, 4, 3, 5, (20, 10, 10, 10))),
    "encodec stereo": ("encodec", ("--stereo",), (2, 8, 3, 5, (20, 20, *[10] * 6))),
    "dac": ("dac", (), (1, 9, 5, 9, (20, *[10] * 8))),
    "mimi": ("mimi", ("--codebooks", "8"), (1, 8, 1, 1, (20, *[10] * 7))),
    "xcodec": ("xcodec", ("--codebooks", "2", "--stereo"), (2, 4, 3, 5, (20, 20, 10, 10))),
}


@pytest.fixture
def codec_folder(tmp_path: Path) -> Callable[[str], Path]:
    def write(kind: str) -> Path:
        if not (tmp_path / kind).exists():
            KINDS[kind]().save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return write


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Three clips in stereo, with captions."""
    (tmp_path / "songs").mkdir()
    for number in range(3):
        sides = [music(2.5 + number / 7, 16_000, seed=number + side) for side in (0, 5)]
        soundfile.write(tmp_path / "songs" / f"{number}.wav", torch.cat(sides).T.numpy(), 16_000)
        (tmp_path / "songs" / f"{number}.txt").write_text(f"a {['low', 'high', 'loud'][number]} tone")
    return tmp_path / "songs"


# The others take seconds each, and differ in the codec alone.
FAST = ("encodec stereo", "dac")


@pytest.mark.parametrize(
    "journey", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in JOURNEYS]
)
def test_from_a_folder_to_the_same_clip(
    journey: str, codec_folder: Callable[[str], Path], songs: Path, tmp_path: Path
) -> None:
    kind, options, (streams, n_q, span_len, context, steps) = JOURNEYS[journey]
    folder, shards, run = codec_folder(kind), tmp_path / "shards", tmp_path / "run"
    assert (
        main(["tokenize", "--audio", str(songs), "--out", str(shards), "--codec", str(folder), *options]) == 0
    )
    record = read_manifest(shards).codec
    assert (record.streams, record.n_q) == (streams, n_q)
    assert ("streams" in json.loads((shards / "manifest.json").read_text())["codec"]) == (streams == 2)
    assert main(["verify", str(shards)]) == 0
    assert main(["fit", *SMALL, "--data.shards", str(shards), "--run", str(run)]) == 0
    (checkpoint,) = run.glob("step=*2.ckpt")
    trained = Magnet.from_pretrained(checkpoint)
    lm = trained.lm
    assert (lm.streams, lm.n_q, lm.span_len, lm.subcodes_context) == (streams, n_q, span_len, context)
    assert trained.decoding.decoding_steps == steps
    sample, rate = soundfile.read(run / "samples" / "step_0000002" / "0.wav", always_2d=True)
    assert (rate, sample.shape) == (record.sample_rate, (record.frames(1.0) * hop_of(record), streams))
    words = ("--text", "a low tone", "--seconds", "0.5", "--seed", "3")
    assert main(["generate", "--model", str(checkpoint), "--out", str(tmp_path / "clips"), *words]) == 0
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "export")]) == 0
    for path in folder.iterdir():
        path.unlink()  # the export is complete without it
    exported = Magnet.from_pretrained(tmp_path / "export")
    assert (exported.lm.config, exported.decoding) == (lm.config, trained.decoding)
    write_audio(tmp_path / "again.wav", exported.generate(["a low tone"], seconds=0.5, seed=3)[0], rate)
    (clip,) = (tmp_path / "clips").glob("*.wav")
    assert np.array_equal(soundfile.read(clip)[0], soundfile.read(tmp_path / "again.wav")[0])


def hop_of(record: Any) -> int:
    return round(record.sample_rate / record.frame_rate)


def test_channels_are_heard_apart(codec_folder: Callable[[str], Path], songs: Path, tmp_path: Path) -> None:
    """Files with left and right exchanged give shards whose streams are exchanged."""
    (tmp_path / "swapped").mkdir()
    for path in songs.iterdir():
        if path.suffix == ".wav":
            audio, rate = soundfile.read(path)
            soundfile.write(tmp_path / "swapped" / path.name, audio[:, ::-1], rate)
        else:
            (tmp_path / "swapped" / path.name).write_text(path.read_text())
    from datamodules.shards.reading import ShardReader

    clips = []
    for audio in (songs, tmp_path / "swapped"):
        words = ["--codec", str(codec_folder("encodec")), "--codebooks", "2", "--stereo", "--device", "cpu"]
        out = tmp_path / f"of {audio.name}"
        assert main(["tokenize", "--audio", str(audio), "--out", str(out), *words]) == 0
        clips.append({sample.key: sample.tokens for sample in ShardReader(out)})
        manifest = (out / "manifest.json").read_bytes()
        for name in ("manifest.json", "index.npy", "tokenize.json"):
            (out / name).unlink()
        assert main(["verify", str(out), "--write_index", *words[:-2]]) == 0
        assert (out / "manifest.json").read_bytes() == manifest
    straight, swapped = clips
    assert straight.keys() == swapped.keys()
    for key, tokens in straight.items():
        assert np.array_equal(swapped[key], tokens[[1, 0, 3, 2]])


def message(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that is refused, and return its only line."""
    capfd.readouterr()
    assert main(list(map(str, words))) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    return line


def test_what_does_not_fit_is_one_sentence(
    codec_folder: Callable[[str], Path], songs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, tokenize = codec_folder("encodec"), ["tokenize", "--audio", songs, "--device", "cpu"]

    def shards(name: str, *options: str) -> Path:
        assert (
            main([*map(str, tokenize), "--out", str(tmp_path / name), "--codec", str(folder), *options]) == 0
        )
        return tmp_path / name

    mono, stereo, cut = shards("mono"), shards("stereo", "--stereo"), shards("cut", "--codebooks", "2")
    assert "begun with --codec" in (
        line := message(capfd, *tokenize, "--out", mono, "--codec", folder, "--stereo")
    )
    assert "4 codebooks), and now" in line
    assert "8 codebooks, stereo)" in line
    nowhere = tmp_path / "nowhere"
    assert "has 4 codebooks and cannot give 9" in message(
        capfd, *tokenize, "--out", nowhere, "--codec", folder, "--codebooks", "9"
    )
    assert not nowhere.exists()
    fit = ["fit", *SMALL, "--run", tmp_path / "run", "--data.shards"]
    both = json.dumps({str(mono): 1, str(stereo): 1})
    assert "4 codebooks each of left and right" in (line := message(capfd, *fit, both))
    assert "tokenize the audio again with --codec" in line
    assert " --codebooks " in message(capfd, *fit, json.dumps({str(mono): 1, str(cut): 1}))
    assert main([*map(str, fit), str(mono)]) == 0
    (checkpoint,) = (tmp_path / "run").glob("step=*2.ckpt")
    start = ["fit", *SMALL, "--run", tmp_path / "second", "--init_from", checkpoint, "--data.shards"]
    assert (
        f"{checkpoint} uses 4 codebooks of codec {folder} and the data holds 4 codebooks each of left"
        in message(capfd, *start, stereo)
    )
    assert "holds 2 codebooks" in message(capfd, *start, cut)
    assert not (tmp_path / "second").exists()


def test_audiocraft_cannot_read_two_streams(tmp_path: Path) -> None:
    from dataclasses import replace

    from magnet_train.checkpoints.audiocraft.write import save_audiocraft
    from magnet_train.checkpoints.bundle import ModelBundle
    from magnet_train.decoding import DecodingConfig

    codec = replace(load_codec("quickstart", stereo=True).info, id="owner/codec")
    text = {"kind": "t5", "name": "t5-small", "trainable": False}
    lm = {"n_q": 8, "card": 256, "text_dim": 512, "streams": 2}
    model = ModelBundle("a model", lm, text, codec, DecodingConfig(), 1.0, {})
    with pytest.raises(UserError, match="left and right are two streams of tokens"):
        save_audiocraft(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
