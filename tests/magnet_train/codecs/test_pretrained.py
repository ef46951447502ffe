"""EnCodec, DAC, Mimi and X-Codec keep one protocol; each from a folder of random weights in transformers' format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_codecs import CARD, KINDS, dac, music
from transformers import DacModel

from datamodules.shards.manifest import read_codec
from magnet_train import codecs
from magnet_train.codecs import Codec, load_codec
from magnet_train.codecs.dac import DacCodec
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

# What `CodecInfo` records: sample_rate, channels, frame_rate, n_q.
RECORDED = {
    "encodec": (1_600, 1, 50.0, 4),
    "dac": (44_100, 1, 86.1328125, 9),
    "mimi": (24_000, 1, 12.5, 12),
    "xcodec": (16_000, 1, 50.0, 8),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a codec, by the name of its kind."""
    folder = tmp_path_factory.mktemp("codecs") / request.param
    KINDS[request.param]().save_pretrained(folder)
    return folder


def test_the_record_is_exact(folder: Path) -> None:
    info = load_codec(str(folder)).info
    assert (info.sample_rate, info.channels, info.frame_rate, info.n_q) == RECORDED[folder.name]
    assert (info.id, info.card, info.streams, len(info.sha256)) == (str(folder), CARD, 1, 64)
    assert CodecInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


class OwnCodec(Codec):
    """A codec from outside the package: the level of each frame of 100 samples."""

    kind, sha256 = "own", "0" * 64
    sample_rate, channels, frame_rate, n_q, card = 8000, 1, 80.0, 1, 16

    @classmethod
    def from_pretrained(cls, folder: Path, id: str) -> OwnCodec:
        codec = cls()
        codec.id = id
        return codec

    def to(self, device: torch.device | str) -> OwnCodec:
        return self


def test_a_codec_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "own"}')
    with pytest.raises(UserError, match="model_type own"):
        load_codec(str(tmp_path))
    monkeypatch.setitem(codecs.KINDS, "own", f"{__name__}:OwnCodec")
    info = load_codec(str(tmp_path)).info
    assert (info.id, info.kind, info.n_q) == (str(tmp_path), "own", 1)
    assert load_codec(CodecInfo.from_dict(info.to_dict())).info == info


def test_records_of_before_read_the_same() -> None:
    info = CodecInfo("a", "ab" * 32, 8000, 1, 50.0, 4, 256)
    assert info.to_dict().keys() == {"id", "sha256", "sample_rate", "channels", "frame_rate", "n_q", "card"}
    assert CodecInfo.from_dict(info.to_dict()) == info
    stereo = replace(info, channels=2, streams=2, n_q=8, kind="dac")
    assert stereo.to_dict() == {**info.to_dict(), "channels": 2, "n_q": 8, "streams": 2, "kind": "dac"}
    assert CodecInfo.from_dict(stereo.to_dict()) == stereo
    assert read_codec(stereo.to_dict(), "manifest") == stereo
    for wrong in ({"streams": 2}, {"streams": 2, "channels": 2, "n_q": 7}, {"streams": 3, "channels": 2}):
        with pytest.raises(UserError, match="streams"):
            CodecInfo.from_dict({**info.to_dict(), **wrong}, "manifest.json")
        with pytest.raises(UserError, match=r"manifest\.json.*streams"):
            read_codec({**info.to_dict(), **wrong}, "manifest.json")


def test_frames_are_whole_whatever_the_length(folder: Path) -> None:
    codec = load_codec(str(folder))
    hop = round(codec.sample_rate / codec.frame_rate)
    for samples in (
        1,
        hop - 1,
        hop,
        hop + 1,
        2 * hop,
        5 * hop - 1,
        5 * hop,
        5 * hop + 1,
        11 * hop + hop // 2,
    ):
        tokens = codec.encode(music(1.0, codec.sample_rate)[None, :, :samples])
        frames = -(-min(samples, codec.sample_rate) // hop)
        assert tokens.shape == (1, codec.n_q, frames), samples
        assert tokens.dtype == torch.int64
        assert codec.decode(tokens).shape == (1, 1, frames * hop), samples


def test_a_clip_is_the_same_in_a_batch(folder: Path) -> None:
    codec = load_codec(str(folder))
    clips = torch.stack([music(1.0, codec.sample_rate, seed) for seed in range(3)])
    tokens = codec.encode(clips)
    assert len(tokens.unique()) > CARD // 2  # the codebooks are in use
    assert torch.equal(tokens, torch.cat([codec.encode(clip[None]) for clip in clips]))
    assert torch.equal(codec.decode(tokens), torch.cat([codec.decode(clip[None]) for clip in tokens]))


def test_fewer_codebooks_are_the_first_ones(folder: Path) -> None:
    codec, cut = load_codec(str(folder)), load_codec(str(folder), codebooks=3)
    audio = music(1.0, codec.sample_rate)[None]
    assert torch.equal(cut.encode(audio), codec.encode(audio)[:, :3])
    assert cut.info == replace(codec.info, n_q=3)
    assert load_codec(cut.info).info == cut.info
    fine, coarse = codec.decode(codec.encode(audio)), cut.decode(cut.encode(audio))
    assert coarse.shape == fine.shape
    assert not torch.equal(coarse, fine)


def test_more_codebooks_than_there_are(folder: Path) -> None:
    n_q = RECORDED[folder.name][3]
    for asked in (n_q + 1, 0):
        with pytest.raises(UserError, match=f"has {n_q} codebooks and cannot give {asked}; use 1 to {n_q}"):
            load_codec(str(folder), codebooks=asked)


def test_left_and_right_are_streams_of_the_mono_codec(folder: Path) -> None:
    mono, stereo = load_codec(str(folder), codebooks=3), load_codec(str(folder), codebooks=3, stereo=True)
    info = stereo.info
    assert (info.channels, info.streams, info.n_q, info.sha256) == (2, 2, 6, mono.sha256)
    assert load_codec(info).info == info
    left, right = (music(1.0, mono.sample_rate, seed) for seed in (1, 2))
    tokens = stereo.encode(torch.cat([left, right])[None])
    assert torch.equal(tokens[:, 0::2], mono.encode(left[None]))  # L0 R0 L1 R1 L2 R2
    assert torch.equal(tokens[:, 1::2], mono.encode(right[None]))
    swapped = stereo.encode(torch.cat([right, left])[None])
    assert torch.equal(swapped, tokens[:, [1, 0, 3, 2, 5, 4]])
    assert not torch.equal(swapped, tokens)
    assert torch.equal(
        stereo.decode(tokens), torch.cat([mono.decode(tokens[:, k::2]) for k in (0, 1)], dim=1)
    )


def test_a_stereo_codec_has_no_streams(tmp_path: Path) -> None:
    KINDS["encodec"](audio_channels=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 2 channels itself; leave --stereo out"):
        load_codec(str(tmp_path), stereo=True)


def test_odd_strides_end_with_the_last_sample() -> None:
    """transformers' own decoder of the 16 kHz DAC gives 6392 samples for 20 frames of 320."""
    model = dac(downsampling_ratios=[2, 4, 5, 8], sampling_rate=16_000)
    codec = DacCodec(model, "x", "")
    tokens = codec.encode(music(0.4, 16_000)[None])
    with torch.no_grad():
        theirs = model.decode(audio_codes=tokens).audio_values
    ours = codec.decode(tokens)
    assert (theirs.shape, ours.shape) == ((1, 6_392), (1, 1, 6_400))
    assert torch.equal(ours[0, :, :6_392], theirs)
    assert bool((ours[0, :, 6_392:] == theirs[:, -1:]).all())


def test_another_class_of_codec_names_those_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xcodec2"}))
    with pytest.raises(
        UserError, match=r"of type dac, encodec, mimi, xcodec: its config.json has model_type xcodec2;"
    ):
        load_codec(str(tmp_path))


def change_config(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Link the weights of a codec, and write its config.json after `change`."""
    target.mkdir()
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


PROMISED = 10**7  # layers or numbers
TOO_MANY = {
    "encodec": {"target_bandwidths": [float(PROMISED)]},
    "dac": {"n_codebooks": PROMISED},
    "mimi": {"num_quantizers": PROMISED},
    "xcodec": {"target_bandwidths": [float(PROMISED)]},
}
TOO_WIDE = {
    "encodec": {"num_filters": PROMISED},
    "dac": {"encoder_hidden_size": PROMISED},
    "mimi": {"intermediate_size": PROMISED},
    "xcodec": {"codebook_dim": PROMISED},
}


@pytest.mark.parametrize("changes", [TOO_MANY, TOO_WIDE], ids=["layers", "numbers"])
def test_a_small_file_that_promises_a_large_codec(folder: Path, changes: Any, tmp_path: Path) -> None:
    bad = change_config(folder, tmp_path / "bad", lambda config: config.update(changes[folder.name]))
    with pytest.raises(UserError, match=r"larger than the [0-9,]+ bytes of its weights"):
        load_codec(str(bad))


def test_rates_that_no_audio_has(folder: Path, tmp_path: Path) -> None:
    name = "sample_rate" if folder.name == "xcodec" else "sampling_rate"
    bad = change_config(folder, tmp_path / "bad", lambda config: config.update({name: 0}))
    with pytest.raises(UserError) as caught:
        load_codec(str(bad))
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mimi_without_its_last_convolution(tmp_path: Path) -> None:
    KINDS["mimi"]().save_pretrained(tmp_path / "good")
    bad = change_config(tmp_path / "good", tmp_path / "bad", lambda config: config.update(_frame_rate=25.0))
    with pytest.raises(UserError, match="bad cannot be loaded"):
        load_codec(str(bad))


@pytest.mark.parametrize("part", ["semantic_model_config", "acoustic_model_config"])
def test_strides_that_are_not_those_of_the_weights(part: str, tmp_path: Path) -> None:
    """A stride shows in no shape of a weight; of an X-Codec there are two encoders that could disagree."""
    KINDS["xcodec"]().save_pretrained(tmp_path / "good")

    def change(config: dict[str, Any]) -> None:
        if part == "semantic_model_config":
            config[part]["conv_stride"] = [5, 2, 2, 2, 2, 2, 4]
        else:
            config[part]["downsampling_ratios"] = config[part]["downsampling_ratios"][::-1]

    bad = change_config(tmp_path / "good", tmp_path / "bad", change)
    with pytest.raises(UserError) as caught:
        load_codec(str(bad))
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_codec_in_half_precision_computes_in_float32(tmp_path: Path) -> None:
    dac().half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    codec = load_codec(str(tmp_path))
    assert isinstance(codec, DacCodec)
    assert isinstance(codec.model, DacModel)
    assert {p.dtype for p in codec.model.parameters()} == {torch.float32}


def test_a_relative_folder_is_recorded_with_its_full_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other commands may run elsewhere, where the relative path would be taken for a hub id."""
    monkeypatch.chdir(folder.parent)
    info = load_codec(folder.name).info
    assert info.id == str(folder)
    monkeypatch.chdir(tmp_path)
    assert load_codec(info).info == info
