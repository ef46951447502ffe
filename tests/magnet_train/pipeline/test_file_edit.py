"""An edited file keeps every sample outside the region, at its own rate, channels and type of sample."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import EncodecConfig, EncodecModel

from magnet_train.audio import AudioStream
from magnet_train.checkpoints.load import read_model
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.errors import UserError
from magnet_train.pipeline.file_edit import FileEdit
from magnet_train.pipeline.magnet import Magnet

RATE, HOP = 8000, 160  # of the packaged codec, which is mono
FADE = 0.01  # s


@pytest.fixture(scope="module")
def magnet(checkpoint: Path) -> Magnet:
    return Magnet.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def stereo(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny model with a random stereo codec of 16 kHz."""
    folder = tmp_path_factory.mktemp("stereo")
    torch.manual_seed(0)
    config = EncodecConfig(
        **{"audio_channels": 2, "sampling_rate": 16_000, "upsampling_ratios": [20, 16], "num_filters": 8},
        **{"hidden_size": 32, "codebook_size": 256, "codebook_dim": 32, "target_bandwidths": [1.6]},
        **{"use_causal_conv": False, "normalize": False, "chunk_length_s": None, "num_lstm_layers": 1},
    )
    codec = EncodecModel(config)
    for layer in codec.quantizer.layers:
        layer.codebook.embed.normal_()
    codec.save_pretrained(folder / "codec")
    bundle = replace(
        read_model(checkpoint), codec=load_codec(str(folder / "codec")).info, codec_folder=folder / "codec"
    )
    Magnet(bundle).save_pretrained(folder / "model")
    return folder / "model"


def write(path: Path, rate: int, channels: int, subtype: str, seconds: float = 2.0) -> Path:
    """Write tones with noise that use all bits of the type; the right channel has half the level."""
    time = np.arange(round(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * 220 * time), 0.5 * np.sin(2 * np.pi * 330 * time)][:channels]
    noise = 1e-3 * np.random.default_rng(0).standard_normal((len(time), channels))
    samples = 0.6 * np.stack(tones, axis=1) + noise
    if subtype in ("FLOAT", "DOUBLE"):
        samples *= 2  # beyond full scale
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def parts(path: Path, seconds: tuple[float, float], dtype: str = "float64") -> tuple[np.ndarray, np.ndarray]:
    """Return the samples outside a region and its fades, and those within the region."""
    samples, rate = soundfile.read(path, dtype=dtype, always_2d=True)
    time = np.arange(len(samples)) / rate
    edge = FADE + 1.5 / rate
    outside = (time < seconds[0] - edge) | (time > seconds[1] + edge)
    return samples[outside], samples[(time >= seconds[0] + 1 / rate) & (time < seconds[1] - 1 / rate)]


KINDS = [
    ("wav", "PCM_16", 8_000, 1, "int16"),
    ("wav", "PCM_24", 44_100, 2, "int32"),
    ("wav", "PCM_U8", 22_050, 2, "int16"),
    ("wav", "PCM_32", 48_000, 2, "int32"),
    ("wav", "FLOAT", 44_100, 2, "float32"),
    ("wav", "DOUBLE", 16_000, 1, "float64"),
    ("flac", "PCM_16", 44_100, 2, "int16"),
    ("flac", "PCM_24", 96_000, 2, "int32"),
    ("flac", "PCM_S8", 11_025, 1, "int16"),
]


@pytest.mark.parametrize(("kind", "subtype", "rate", "channels", "dtype"), KINDS)
def test_samples_outside_the_region_stay_bit_for_bit(
    magnet: Magnet, tmp_path: Path, kind: str, subtype: str, rate: int, channels: int, dtype: str
) -> None:
    song = write(tmp_path / f"song.{kind}", rate, channels, subtype)
    edit = FileEdit(magnet, song, (1.0, 1.2))
    (made,) = edit.make(["a low bell"], seed=0)
    for name in ("edited", "again"):
        edit.write(tmp_path / f"{name}.{kind}", made)
    info = soundfile.info(tmp_path / f"edited.{kind}")
    assert (info.format, info.subtype, info.samplerate) == (kind.upper(), subtype, rate)
    assert (info.channels, info.frames) == (channels, 2 * rate)
    outside, within = parts(song, (1.0, 1.2), dtype)
    kept, changed = parts(tmp_path / f"edited.{kind}", (1.0, 1.2), dtype)
    assert np.array_equal(kept, outside)
    assert (changed != within).mean() > 0.9
    assert (tmp_path / f"edited.{kind}").read_bytes() == (tmp_path / f"again.{kind}").read_bytes()


def test_at_the_models_own_rate_it_is_the_edit_of_python(magnet: Magnet, tmp_path: Path) -> None:
    song = write(tmp_path / "song.wav", RATE, 1, "FLOAT")
    audio = torch.from_numpy(soundfile.read(song, dtype="float32")[0])[None]
    edit = FileEdit(magnet, song, (1.0, 1.2))
    made = edit.make(["a low bell", None], seed=0)
    for version, expected in zip(
        made, magnet.edit(audio, (1.0, 1.2), ["a low bell", None], seed=0), strict=True
    ):
        edit.write(tmp_path / "edited.wav", version)
        assert np.array_equal(
            soundfile.read(tmp_path / "edited.wav", dtype="float32")[0], expected[0].numpy()
        )


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_a_lossy_recording_becomes_a_wav_of_its_decoded_samples(
    magnet: Magnet, tmp_path: Path, suffix: str
) -> None:
    song = tmp_path / f"song.{suffix}"
    soundfile.write(song, 0.3 * np.sin(np.arange(2 * 44_100) / 20), 44_100)
    edit = FileEdit(magnet, song, (1.0, 1.2))
    assert edit.format.suffix == ".wav"
    edit.write(tmp_path / "edited.wav", edit.make(["a low bell"], seed=0)[0])
    assert soundfile.info(tmp_path / "edited.wav").subtype == "FLOAT"
    kept, original = (parts(path, (1.0, 1.2), "float32")[0] for path in (tmp_path / "edited.wav", song))
    assert np.abs(kept - original).max() < 1e-7  # an mp3 read in blocks differs from one read by rounding


def unchanged(clip: torch.Tensor, keep: torch.Tensor, texts: list[str], **_: Any) -> torch.Tensor:
    """Stand in for `Magnet.regenerate`, with a model and a codec without any loss."""
    padded = torch.nn.functional.pad(clip, (0, len(keep) * HOP - clip.shape[-1]))
    return padded.expand(len(texts), -1, -1)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_051, 44_100, 48_000])
@pytest.mark.parametrize("region", [(0.0, 0.2), (1.003, 1.21), (1.7, 2.0)])
def test_the_region_is_where_and_as_loud_as_it_was(
    magnet: Magnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, region: tuple[float, float]
) -> None:
    """A model that changes nothing gives back the file: the region is not moved, faded or scaled."""
    monkeypatch.setattr(magnet, "regenerate", unchanged)
    time = np.arange(2 * rate) / rate
    song = 0.5 * np.sin(2 * np.pi * 440 * time)  # the model's rate holds all of it
    soundfile.write(tmp_path / "song.wav", np.stack([song, 0.25 * song], axis=1), rate, subtype="PCM_24")
    edit = FileEdit(magnet, tmp_path / "song.wav", region)
    edit.write(tmp_path / "edited.wav", edit.make(["a low bell"])[0])
    edited, _ = soundfile.read(tmp_path / "edited.wav")
    inner = (time > 0.01) & (time < 1.99)  # the filter sees silence beyond the ends
    error = np.abs(edited - np.stack([song, 0.25 * song], axis=1))[inner].max()
    assert error < 5e-3  # a shift by one sample of 44.1 kHz would give 0.03


def test_the_region_of_a_mono_model_keeps_the_balance(magnet: Magnet, tmp_path: Path) -> None:
    song = write(tmp_path / "song.wav", 44_100, 2, "PCM_16")
    edit = FileEdit(magnet, song, (1.0, 1.2))
    assert edit.mono_in_stereo
    (made,) = edit.make(["a low bell"], seed=0)
    left, right = made.square().mean(dim=-1).sqrt()
    assert float(left / right) == pytest.approx(2, rel=0.02)
    assert torch.allclose(made[0] / made[1], (left / right).expand_as(made[0]), rtol=1e-3)


def test_only_what_is_around_the_region_is_resampled(
    magnet: Magnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song = write(tmp_path / "song.wav", 44_100, 2, "PCM_16", seconds=120.0)
    read, blocks = [], AudioStream.__iter__
    monkeypatch.setattr(
        AudioStream, "__iter__", lambda stream: (read.append(b.shape[-1]) or b for b in blocks(stream))
    )
    edit = FileEdit(magnet, song, (100.0, 100.2))
    edit.write(tmp_path / "edited.wav", edit.make(["a low bell"], seed=0)[0])
    assert sum(read) < 4 * RATE
    assert np.array_equal(parts(tmp_path / "edited.wav", (100.0, 100.2))[0], parts(song, (100.0, 100.2))[0])


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_the_container_can_be_chosen(magnet: Magnet, tmp_path: Path, container: str) -> None:
    other = {"wav": "flac", "flac": "wav"}[container]
    song = write(tmp_path / f"song.{other}", 44_100, 2, "PCM_24")
    edit = FileEdit(magnet, song, (1.0, 1.2), container)
    edit.write(tmp_path / f"edited.{container}", edit.make(["a low bell"], seed=0)[0])
    assert soundfile.info(tmp_path / f"edited.{container}").subtype == "PCM_24"
    kept, _ = parts(tmp_path / f"edited.{container}", (1.0, 1.2), "int32")
    assert np.array_equal(kept, parts(song, (1.0, 1.2), "int32")[0])


def test_recordings_that_cannot_be_edited(magnet: Magnet, tmp_path: Path, no_file_larger_than: Any) -> None:
    floats = write(tmp_path / "floats.wav", 44_100, 1, "FLOAT")
    with pytest.raises(UserError, match=r"cannot hold the samples of .*floats\.wav.*--format wav"):
        FileEdit(magnet, floats, (1.0, 1.2), "flac")
    with pytest.raises(UserError, match=r"floats\.wav: the region from 3 to 4 s"):
        FileEdit(magnet, floats, (3.0, 4.0))
    broken = write(tmp_path / "broken.flac", 44_100, 2, "PCM_24")
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 3 // 4])
    edit = FileEdit(magnet, broken, (0.5, 0.7))
    (made,) = edit.make(["a low bell"], seed=0)
    with pytest.raises(UserError, match=r"broken\.flac"):
        edit.write(tmp_path / "out" / "edited.flac", made)
    edit = FileEdit(magnet, floats, (1.0, 1.2))
    (made,) = edit.make(["a low bell"], seed=0)
    with no_file_larger_than(100_000), pytest.raises(UserError, match="no room on disk"):
        edit.write(tmp_path / "out" / "edited.wav", made)
    assert list((tmp_path / "out").iterdir()) == []


def test_stereo_survives_export_prompt_and_edit(stereo: Path, tmp_path: Path) -> None:
    magnet, song = Magnet.from_pretrained(stereo), write(tmp_path / "song.wav", 44_100, 2, "PCM_24", 1.0)
    start = write(tmp_path / "start.wav", 16_000, 2, "PCM_16", 0.3)
    command = ["generate", "--model", str(stereo), "--text", "a low bell", "--out"]
    assert main([*command, str(tmp_path / "continued"), "--prompt", str(start)]) == 0
    (path,) = (tmp_path / "continued").glob("*.wav")
    continued, rate = soundfile.read(path, always_2d=True)
    assert (rate, continued.shape[1]) == (16_000, 2)
    audio = torch.from_numpy(soundfile.read(start, dtype="float32")[0].T.copy())
    expected = magnet.codec.decode(magnet.codec.encode(audio[None]))[0].T.numpy()
    scale = (
        np.abs(expected[:2000]).max() / np.abs(continued[:2000]).max()
    )  # a clip beyond full scale is scaled
    assert np.abs(expected[:2000] - scale * continued[:2000]).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(continued[:, 0] - continued[:, 1]).max() > 1e-3
    assert main([*command, str(tmp_path / "edited"), "--edit", str(song), "--region", "0.4:0.6"]) == 0
    (path,) = (tmp_path / "edited").glob("*.wav")
    assert np.array_equal(parts(path, (0.4, 0.6), "int32")[0], parts(song, (0.4, 0.6), "int32")[0])
    left, right = parts(path, (0.4, 0.6))[1].T
    assert np.abs(left / np.abs(left).max() - right / np.abs(right).max()).max() > 1e-2  # two sounds
    (line,) = (tmp_path / "edited" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["seconds"] == 1.0
