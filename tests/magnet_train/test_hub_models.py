"""Released models by their hub ids: `pytest -m network`. It downloads about 3 GB on first use."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import constants

from magnet_train import Magnet
from magnet_train.codecs import load_codec
from magnet_train.text import T5Text

pytestmark = pytest.mark.network


@pytest.fixture(scope="module", autouse=True)
def hub() -> None:
    """Skip where the hub does not answer."""
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        pytest.skip("needs the model hub")
    if constants.HF_HUB_OFFLINE:
        pytest.skip("HF_HUB_OFFLINE is set")


def test_encodec_32khz() -> None:
    """Its numbers are those of the model card: 4 codebooks of 2048 entries at 50 Hz."""
    codec = load_codec("facebook/encodec_32khz")
    assert (codec.sample_rate, codec.channels, codec.frame_rate, codec.n_q, codec.card) == (
        32000,
        1,
        50.0,
        4,
        2048,
    )
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(32000) / 32000)
    tokens = codec.encode(tone[None, None])
    assert tokens.shape == (1, 4, 50)
    assert codec.decode(tokens).shape == (1, 1, 32000)


def test_t5_base() -> None:
    states, mask = T5Text("t5-base")(["slow piano", "a fast flute over strings"])
    assert states.shape[::2] == (2, 768)
    assert mask.sum(dim=1).tolist() == sorted(mask.sum(dim=1).tolist())  # the longer caption has more tokens
    assert not torch.equal(states[0, 0], states[1, 0])


def test_a_released_magnet_makes_sound() -> None:
    magnet = Magnet.from_pretrained("facebook/magnet-small-10secs")
    audio = magnet.generate(["slow piano"], seconds=2, seed=0)
    assert audio.shape[:2] == (1, 1)
    assert audio.shape[2] == pytest.approx(2 * 32000, abs=32000 // 50 * 3)  # whole spans
    assert torch.isfinite(audio).all()
    assert audio.abs().max() > 0.01
