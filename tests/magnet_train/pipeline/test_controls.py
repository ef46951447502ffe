"""Negative captions, a seed for each clip, and loops in bars."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from magnet_train.audio.resampling import stretch_loop
from magnet_train.errors import UserError
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.pipeline.magnet import Magnet

RATE, HOP = 8000, 160  # of the packaged codec
TEXTS = ["a low bell", None, "a high flute"]


@pytest.fixture(scope="module")
def magnet(checkpoint: Path) -> Magnet:
    return Magnet.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def lm() -> MagnetTransformer:
    torch.manual_seed(0)
    return MagnetTransformer(4, 64, 12, dim=32, num_heads=2, num_layers=2).eval()


@pytest.mark.parametrize("coefficient", [0.0, 1.0, 3.0])
def test_guidance_leads_away_from_the_negative_caption(lm: MagnetTransformer, coefficient: float) -> None:
    """In a batch: away from a caption of another length, from no caption, and to no caption from one."""
    torch.manual_seed(1)
    tokens, text = torch.randint(65, (3, 4, 20)), torch.randn(6, 7, 12)
    mask = torch.arange(7) < torch.tensor([7, 3, 0, 4, 0, 2])[:, None]
    with torch.no_grad():
        guided = GuidedLogits(lm, text, mask, hide_padding=True, negative=True)(tokens, 1, coefficient)
        wanted, avoided = lm(tokens, 1, text[:3], mask[:3]), lm(tokens, 1, text[3:], mask[3:])
    torch.testing.assert_close(guided, avoided + (wanted - avoided) * coefficient, atol=1e-5, rtol=1e-5)


def test_a_negative_caption_changes_the_clip_and_none_does_not(magnet: Magnet) -> None:
    plain = magnet.generate_tokens(TEXTS, seed=1)
    for without in (None, "", [None, "", None]):
        assert torch.equal(magnet.generate_tokens(TEXTS, seed=1, negative=without), plain)
    avoided = magnet.generate_tokens(TEXTS, seed=1, negative="a high flute")
    assert not torch.equal(avoided[0], plain[0])
    assert not torch.equal(avoided[1], plain[1])  # a clip without a caption as well
    assert torch.equal(
        avoided[2],
        magnet.generate_tokens(["a high flute"], seed=1, first_index=2, negative=["a high flute"])[0],
    )
    each = magnet.generate_tokens(TEXTS, seed=1, negative=["a high flute", None, None])
    assert torch.equal(each[0], avoided[0])
    assert torch.equal(each[1:], plain[1:])


def test_negative_captions_reach_edits(magnet: Magnet) -> None:
    audio = 0.1 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(2))
    plain, avoided = (
        magnet.edit(audio, (0.4, 0.6), ["a low bell"], seed=0, negative=negative)
        for negative in (None, "a flute")
    )
    assert not torch.equal(plain, avoided)


def test_each_clip_with_a_seed_of_its_own_is_as_alone(magnet: Magnet) -> None:
    together = magnet.generate(TEXTS, seed=[7, 0, 9], first_index=[0, 3, 0])
    for row, (seed, index) in enumerate([(7, 0), (0, 3), (9, 0)]):
        alone = magnet.generate([TEXTS[row]], seed=seed, first_index=index)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize(("bars", "bpm"), [(1, 123), (1, 250.5), (2, 400), (1, 240)])
def test_a_loop_in_bars_has_their_samples(magnet: Magnet, bars: int, bpm: float) -> None:
    loop = magnet.generate(["a low bell"], seed=0, loop=True, bars=bars, bpm=bpm)
    seconds = bars * 240 / bpm
    assert loop.shape == (1, 1, round(seconds * RATE))
    made = magnet.generate(["a low bell"], seed=0, loop=True, seconds=seconds)
    assert abs(loop.shape[-1] - made.shape[-1]) <= HOP / 2
    assert torch.equal(loop, stretch_loop(made, loop.shape[-1]))
    assert (bpm in (240, 400)) == torch.equal(loop, made)  # 50 and 60 whole frames


@pytest.mark.parametrize("samples", [7900, 8000, 8077])
def test_a_stretched_loop_stays_seamless(samples: int) -> None:
    """The same sound at every position, the seam included, and rotated as the loop is rotated."""

    def waves(count: int) -> torch.Tensor:
        phase = 2 * torch.pi * torch.arange(count, dtype=torch.float64) / count
        return (torch.sin(50 * phase + 1) + 0.5 * torch.cos(731 * phase)).float()[None]

    torch.testing.assert_close(stretch_loop(waves(8000), samples), waves(samples), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negative": 3}, "negative is 3"),
        ({"negative": ["a", "b"]}, "negative has 2 captions for 1 clips"),
        ({"negative": [7]}, r"negative\[0\] is 7"),
        ({"negative": "a flute", "cfg": 1.0}, "at most 1 here; raise max_cfg_coef"),
        ({"seed": [1, 2]}, "seed has 2 numbers for 1 clips"),
        ({"seed": ["x"]}, "seed is 'x'"),
        ({"seed": [-1]}, "seed -1 must lie"),
        ({"first_index": [1, 2]}, "first_index has 2 numbers"),
        ({"bars": 4, "bpm": 120}, "give loop=True"),
        ({"bars": 4, "bpm": 120, "loop": True, "seconds": 1.0}, "leave out seconds"),
        ({"bars": 4, "loop": True}, "bars is 4 and bpm None"),
        ({"bars": 1.5, "bpm": 120, "loop": True}, "bars is 1.5"),
        ({"bars": 0, "bpm": 120, "loop": True}, "0 bars at 120 bpm"),
        ({"bars": 4, "bpm": float("nan"), "loop": True}, "4 bars at nan bpm"),
        ({"bars": 4, "bpm": 0, "loop": True}, "4 bars at 0 bpm"),
        ({"bars": 10**9, "bpm": 120, "loop": True}, "out of range"),
    ],
)
def test_what_cannot_be_is_one_sentence(magnet: Magnet, options: dict[str, Any], words: str) -> None:
    coefficient = options.pop("cfg", 3.0)
    decoding = replace(magnet.decoding, max_cfg_coef=coefficient, min_cfg_coef=1.0)
    with pytest.raises(UserError, match=words):
        magnet.generate(["a low bell"], decoding=decoding, **options)
