"""Loops: all but the seam stays, the ends are made in sight of each other and on the beat, and their audio fits together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train import DecodingConfig, Magnet
from magnet_train.codecs import QUICKSTART, load_codec
from magnet_train.codecs.chunked import decode_loop
from magnet_train.decoding import Progress
from magnet_train.decoding.sliding_window import close_loop
from magnet_train.errors import UserError

HOP = 160  # samples a frame of the packaged codec: 8 kHz, 50 Hz


def one_hot(tokens: Tensor) -> Tensor:
    """Features [B, D, T] of tokens [B, K, T]: which token of codebook 0 it is."""
    return F.one_hot(tokens[:, 0], 64).float().transpose(1, 2)


class Maker:
    """Fills what is missing with 63 and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[Tensor, Tensor]] = []

    def __call__(self, prompt: Tensor, keep: Tensor, progress: Progress | None) -> Tensor:
        self.shown.append((prompt, keep))
        return torch.where(keep, prompt, 63)


@pytest.mark.parametrize("window", [64, 40])  # as long as the clip, and shorter
@pytest.mark.parametrize("period", [7, 16])
def test_only_the_seam_is_made_again_and_the_window_begins_on_a_beat(window: int, period: int) -> None:
    num_frames = 112  # a whole number of beats
    tokens = (torch.arange(num_frames) % period).expand(2, 3, -1).clone()
    make = Maker()
    loop = close_loop(tokens, torch.zeros_like(tokens, dtype=torch.bool), window, 6, make, one_hot)
    changed = (loop != tokens).all(dim=1)
    assert [torch.where(row)[0].tolist() for row in changed] == [[0, 1, 2, 109, 110, 111]] * 2
    ((shown, keep),) = make.shown
    assert shown.shape[-1] == window
    assert (shown[:, :, 0] == 0).all()  # the first token of a beat
    seam = torch.where(~keep[0, 0])[0]
    assert seam.tolist() == list(range(int(seam[0]), int(seam[0]) + 6))  # both ends, side by side
    assert window // 8 < int(seam[0]) < window - window // 8  # with sound on both sides


def test_a_prompt_stays_and_the_whole_seam_lies_before_it() -> None:
    tokens = torch.arange(48).expand(1, 2, -1) % 12
    stays = torch.zeros(1, 2, 48, dtype=torch.bool)
    stays[..., :12] = True
    loop = close_loop(tokens, stays, 48, 6, Maker(), one_hot)
    assert torch.equal(loop[..., :45], tokens[..., :45])
    assert (loop[..., 45:] == 63).all()


@pytest.mark.parametrize("num_frames", [3, 4, 5, 7])
def test_very_short_loops(num_frames: int) -> None:
    tokens = torch.arange(num_frames).expand(1, 1, -1)
    loop = close_loop(tokens, torch.zeros(1, 1, num_frames, dtype=torch.bool), 24, 6, Maker(), one_hot)
    assert loop.shape == tokens.shape


def test_audio_of_a_loop_does_not_depend_on_where_it_begins() -> None:
    codec = load_codec(QUICKSTART)
    tone = 0.3 * torch.sin(2 * torch.pi * 262 * torch.arange(64 * HOP) / codec.sample_rate)
    tokens = codec.encode(tone[None, None])
    here = decode_loop(codec, tokens)
    assert here.shape == (1, 1, 64 * HOP)
    turned = decode_loop(codec, tokens.roll(-25, dims=-1)).roll(25 * HOP, dims=-1)
    torch.testing.assert_close(turned, here, atol=1e-4, rtol=0)
    cut = codec.decode(tokens.roll(-25, dims=-1)).roll(25 * HOP, dims=-1)
    assert float((cut - here).abs().max()) > 1e-2


def test_a_loop_is_the_straight_clip_but_for_its_ends(checkpoint: Path) -> None:
    magnet = Magnet.from_pretrained(checkpoint)
    seam = magnet.lm.span_len
    for seconds in (0.48, 1.3):  # of a model of .48 s
        straight = magnet.generate_tokens(["a low bell", None], seconds, seed=0)
        loop = magnet.generate_tokens(["a low bell", None], seconds, seed=0, loop=True)
        assert torch.equal(loop[..., seam:-seam], straight[..., seam:-seam])
        assert not torch.equal(loop, straight)
        assert 0 <= int(loop.min()) <= int(loop.max()) < magnet.lm.card


def test_parity_has_no_loops(checkpoint: Path) -> None:
    magnet = Magnet.from_pretrained(checkpoint)
    with pytest.raises(UserError, match="no loops"):
        magnet.generate_tokens(["a flute"], loop=True, decoding=DecodingConfig(parity=True))
