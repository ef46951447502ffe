"""Both kinds of EnCodec from folders in their own formats, with random weights, and the packaged one."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EncodecConfig, EncodecModel

from magnet_train.codecs import load_codec
from magnet_train.codecs.encodec import WEIGHTS, EncodecCodec, load_published
from magnet_train.errors import UserError


def random_encodec(**changes: Any) -> EncodecModel:
    """A small one whose codebooks hold something; transformers starts them at zero."""
    settings: dict[str, Any] = {
        "sampling_rate": 1600,
        "target_bandwidths": [0.2, 0.4],  # kbit/s: 2 and 4 codebooks of 4 bits at 25 Hz
        "upsampling_ratios": [8, 8],
        "num_filters": 4,
        "hidden_size": 8,
        "codebook_size": 16,
        "codebook_dim": 8,
        "num_lstm_layers": 1,
        "normalize": False,
        "chunk_length_s": None,
    }
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(**{**settings, **changes}))
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_encodec().save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def test_a_folder_of_transformers_describes_itself(folder: Path) -> None:
    info = load_codec(str(folder)).info
    assert (info.sample_rate, info.channels, info.frame_rate, info.n_q, info.card) == (1600, 1, 25.0, 4, 16)
    assert info.id == str(folder)
    assert info.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_encode_and_decode_have_the_promised_shapes(folder: Path) -> None:
    codec = load_codec(str(folder))
    audio = torch.randn(3, 1, 1000, generator=torch.Generator().manual_seed(1))
    tokens = codec.encode(audio)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (3, 4, math.ceil(1000 / 64))
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 16
    assert tokens.unique().numel() > 4  # the codebooks are in use
    decoded = codec.decode(tokens)
    assert decoded.shape == (3, 1, 16 * 64)
    assert not decoded.requires_grad
    assert not decoded.is_inference()  # usable in training


def test_tokens_do_not_depend_on_the_batch(folder: Path) -> None:
    codec = load_codec(str(folder))
    audio = torch.randn(3, 1, 640, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([codec.encode(clip[None]) for clip in audio])
    assert torch.equal(codec.encode(audio), alone)


def test_loading_gives_the_tokens_of_the_model_that_was_saved(folder: Path) -> None:
    audio = torch.randn(1, 1, 640, generator=torch.Generator().manual_seed(1))
    expected = EncodecCodec(random_encodec(), "x", "").encode(audio)
    assert torch.equal(load_codec(str(folder)).encode(audio), expected)


def test_stereo(tmp_path: Path) -> None:
    random_encodec(audio_channels=2).save_pretrained(tmp_path / "codec")
    codec = load_codec(str(tmp_path / "codec"))
    tokens = codec.encode(torch.randn(2, 2, 640))
    assert codec.channels == 2
    assert codec.decode(tokens).shape == (2, 2, 640)


def test_the_packaged_codec_keeps_a_tone() -> None:
    codec = load_codec("quickstart")
    assert (codec.id, codec.sample_rate, codec.frame_rate, codec.n_q, codec.card) == (
        "quickstart",
        8000,
        50.0,
        4,
        256,
    )
    audio = 0.5 * torch.sin(2 * math.pi * 330 * torch.arange(8000) / 8000)[None, None]
    decoded = codec.decode(codec.encode(audio))
    loudest = [float(torch.fft.rfft(sound[0, 0]).abs().argmax()) for sound in (audio, decoded)]
    assert loudest[1] == pytest.approx(loudest[0], abs=3)  # Hz: one second of audio


@pytest.mark.parametrize("change", [{"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01}])
def test_a_codec_whose_tokens_are_not_all_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    random_encodec(**change).save_pretrained(tmp_path / "codec")
    with pytest.raises(UserError, match="tokens alone"):
        load_codec(str(tmp_path / "codec"))


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    gone = sorted(weights)[0]
    save_file(
        {name: w for name, w in weights.items() if name != gone},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=f"lacks the weights {gone}; save"):
        load_codec(str(folder))


def test_unusable_folders_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cut = (folder / "model.safetensors").read_bytes()[:1000]
    (folder / "model.safetensors").write_bytes(cut)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "t5"}))
    for bad in (folder, tmp_path / "empty", other, tmp_path / "a" / "b" / "nowhere"):
        with pytest.raises(UserError) as caught:
            load_codec(str(bad))
        assert str(bad) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_of_another_kind_of_model(tmp_path: Path) -> None:
    for content, kind in (
        ({"format": "magnet-train/1"}, "no model_type"),
        ({"model_type": "t5"}, "model_type t5"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(
            UserError,
            match=f"is not a transformers model of type dac, encodec, mimi, xcodec: its config.json has {kind};",
        ):
            load_codec(str(tmp_path))


def test_pickled_weights_that_would_run_code_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    weights = {"encoder": Trap(), "padding": torch.zeros(100_000)}  # enough for what config.json describes
    torch.save(weights, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_codec(str(folder))
    assert not mark.exists()


def test_without_a_network_the_answer_comes_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"network.*; `magnet-train codec` makes one from your own audio"):
        load_codec("nobody/no-such-codec")
    assert time.monotonic() - began < 5
    with pytest.raises(UserError, match=r"did you mean drums_and_bass\?$"):
        load_codec("drum_and_bass")


@pytest.fixture
def mute_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that takes connections and never answers, and little patience with it."""
    for module in ("storage.hub", "codecs.encodec"):
        monkeypatch.setattr(f"magnet_train.{module}.PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_does_not_answer(
    mute_server: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever this machine is set to
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", mute_server)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="timed out"):
        load_codec("nobody/tiny-codec")
    home = tmp_path / "cache" / "models--nobody--tiny-codec"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("1" * 40)
    (home / "snapshots").mkdir()
    folder.rename(home / "snapshots" / ("1" * 40))
    assert load_codec("nobody/tiny-codec").info.n_q == 4  # what was fetched before still serves


def test_a_weights_server_that_does_not_answer(
    mute_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("magnet_train.codecs.encodec.ADDRESS", f"{mute_server}/")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="timed out"):
        load_codec("encodec_24khz")
    assert socket.getdefaulttimeout() is None


def test_old_names_of_normalised_weights_are_understood(folder: Path) -> None:
    """The hub's EnCodecs were saved when torch's weight_norm still called its parts weight_g and weight_v."""
    audio = torch.randn(1, 1, 640, generator=torch.Generator().manual_seed(1))
    expected = load_codec(str(folder)).encode(audio)
    weights = load_file(folder / "model.safetensors")
    for part, old in (("original0", "weight_g"), ("original1", "weight_v")):
        weights = {name.replace(f"parametrizations.weight.{part}", old): w for name, w in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_codec(str(folder)).encode(audio), expected)


@pytest.mark.parametrize("device", ["no-such-device", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(UserError, match=f"device {device} cannot be used"):
        load_codec("quickstart", device=device)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where torch.hub keeps downloads, with weights of the `encodec` package's models that are random."""
    folder = tmp_path_factory.mktemp("hub") / "checkpoints"
    folder.mkdir()
    torch.manual_seed(0)
    for name, file in WEIGHTS.items():
        torch.save(package_model(name).state_dict(), folder / file)
    return folder


def load_from(downloads: Path, name: str) -> EncodecCodec:
    with mock.patch("torch.hub.get_dir", return_value=str(downloads.parent)):
        return load_published(name)


def package_model(name: str) -> Any:
    """Return the `encodec` package's own model, with codebooks as large as what they are to quantise."""
    from encodec import EncodecModel as PackageModel

    model = getattr(PackageModel, name.replace("encodec_", "encodec_model_"))(pretrained=False).eval()
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_(std=0.02)
    return model


# 6 kbit/s: 75 Hz x 8 x 10 bits, and 150 Hz x 4 x 10 bits.
@pytest.mark.parametrize(
    ("name", "rate", "channels", "frame_rate", "n_q"),
    [("encodec_24khz", 24_000, 1, 75.0, 8), ("encodec_48khz", 48_000, 2, 150.0, 4)],
)
def test_the_encodec_package(
    downloads: Path, name: str, rate: int, channels: int, frame_rate: float, n_q: int
) -> None:
    codec = load_from(downloads, name)
    info = codec.info
    assert (info.sample_rate, info.channels, info.frame_rate, info.n_q, info.card) == (
        rate, channels, frame_rate, n_q, 1024,
    )  # fmt: skip
    audio = 0.1 * torch.randn(2, channels, rate // 5, generator=torch.Generator().manual_seed(1))
    tokens = codec.encode(audio)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (2, n_q, frame_rate // 5)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 1024
    assert codec.decode(tokens).shape == audio.shape
    assert len(info.sha256) == 64


@torch.no_grad()
@pytest.mark.parametrize("name", WEIGHTS)
def test_transformers_gives_the_tokens_and_the_audio_of_the_encodec_package(
    downloads: Path, name: str
) -> None:
    codec, package = load_from(downloads, name), package_model(name)
    package.load_state_dict(torch.load(downloads / WEIGHTS[name], weights_only=True))
    package.set_target_bandwidth(6.0)
    audio = 0.3 * torch.randn(1, codec.channels, 9_999, generator=torch.Generator().manual_seed(1))
    latent = package.encoder(audio)
    tokens = package.quantizer.encode(latent, package.frame_rate, package.bandwidth).transpose(0, 1)
    assert tokens.unique().numel() > 50
    assert torch.equal(codec.encode(audio), tokens)
    decoded = package.decoder(package.quantizer.decode(tokens.transpose(0, 1)))
    assert torch.equal(codec.decode(tokens), decoded)
    digest = hashlib.sha256()
    for key, tensor in sorted(package.state_dict().items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    assert codec.sha256 == digest.hexdigest()


def test_package_weights_that_are_absent_or_hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    downloads = tmp_path / "checkpoints"
    downloads.mkdir()
    monkeypatch.setattr("magnet_train.codecs.encodec.ADDRESS", f"{tmp_path.as_uri()}/")
    with pytest.raises(UserError, match="encodec_24khz"):
        load_from(downloads, "encodec_24khz")
    mark = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    torch.save({"encoder": Trap()}, downloads / WEIGHTS["encodec_24khz"], pickle_module=pickle)
    with pytest.raises(UserError, match="encodec_24khz"):
        load_from(downloads, "encodec_24khz")
    assert not mark.exists()
