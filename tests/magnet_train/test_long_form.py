"""Clips longer than the model's: windows overlap by half, go on where the last one ended, and leave what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from magnet_train import DecodingConfig, Magnet
from magnet_train.errors import UserError
from magnet_train.long_form import WindowOfClip, continue_tokens, plan_windows

HOP = 160  # samples a frame of the packaged codec: 8 kHz, 50 Hz
WINDOW = 24  # frames of the checkpoint's clips


@pytest.fixture(scope="module")
def magnet(checkpoint: Path) -> Magnet:
    return Magnet.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("num_frames", "prompt", "expected"),
    [
        (10, 0, [(0, 10, 0)]),
        (20, 0, [(0, 10, 0), (5, 15, 10), (10, 20, 15)]),
        (17, 0, [(0, 10, 0), (5, 15, 10), (7, 17, 15)]),  # the last window is as long as the others
        (12, 4, [(0, 10, 4), (2, 12, 10)]),
        (20, 9, [(4, 14, 9), (9, 19, 14), (10, 20, 19)]),  # a prompt leaves at least half a window to fill
        (40, 36, [(30, 40, 36)]),  # of a long prompt the model sees the end
        (10, 10, []),
    ],
)
def test_windows_by_hand(num_frames: int, prompt: int, expected: list[tuple[int, int, int]]) -> None:
    assert list(plan_windows(num_frames, 10, prompt)) == [WindowOfClip(*window) for window in expected]


def test_each_window_goes_on_where_the_last_one_ended() -> None:
    def count_on(prompt: Tensor, keep: Tensor, progress: object) -> Tensor:
        """Number the missing frames upwards from the last that stays."""
        first = int(keep[0].sum())
        last = prompt[..., first - 1 : first] if first else torch.full((*prompt.shape[:2], 1), -1)
        numbers = last + 1 + torch.arange(prompt.shape[-1] - first)
        return torch.cat([prompt[..., :first], numbers], dim=-1)

    given = torch.full((2, 1, 33), 99)
    given[..., :4] = torch.arange(4)
    tokens = continue_tokens(given, 4, 10, count_on, None)
    assert torch.equal(tokens, torch.arange(33).expand(2, 1, -1))
    assert int(given.max()) == 99  # what came in is as it was


def test_a_long_clip_repeats_with_its_seed_and_says_how_far_it_is(magnet: Magnet) -> None:
    calls: list[tuple[int, int]] = []
    decoding = DecodingConfig(decoding_steps=(2, 1, 1, 1))

    def make(seed: int) -> Tensor:
        calls.clear()
        return magnet.generate_tokens(
            ["a low bell", None],
            seconds=1.1,
            seed=seed,
            decoding=decoding,
            progress=lambda done, total: calls.append((done, total)),
        )

    tokens = make(0)
    assert tokens.shape == (2, 4, 55)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < magnet.lm.card
    assert calls == [(done, 20) for done in range(1, 21)]  # windows from 0, 12, 24 and 31
    assert torch.equal(make(0), tokens)
    assert not torch.equal(make(1), tokens)
    first = magnet.generate_tokens(["a low bell", None], seed=0, decoding=decoding)
    assert torch.equal(tokens[..., :WINDOW], first)


def test_the_rest_of_a_song_is_made_from_its_end(magnet: Magnet) -> None:
    song = 0.1 * torch.randn(1, 90 * HOP, generator=torch.Generator().manual_seed(0))
    codes = magnet.codec.encode(song[None])
    audio = magnet.generate(["a flute"], seconds=2.2, seed=0, prompt=song)
    assert audio.shape == (1, 1, 110 * HOP)
    tokens = magnet.generate_tokens(["a flute"], seconds=2.2, seed=0, prompt=codes)
    assert torch.equal(tokens[..., :90], codes)
    assert torch.equal(magnet.codec.decode(tokens), audio)
    # What lies before the first window has no say.
    other = codes.clone()
    other[..., :70] = (codes[..., :70] + 1) % magnet.lm.card
    again = magnet.generate_tokens(["a flute"], seconds=2.2, seed=0, prompt=other)
    assert torch.equal(again[..., 90:], tokens[..., 90:])


def test_what_has_to_be_made_in_one_go(magnet: Magnet) -> None:
    with pytest.raises(UserError, match=r"a loop has to be made in one go.*0\.48 s"):
        magnet.generate(["a flute"], seconds=1.0, loop=True)
    with pytest.raises(UserError, match="parity"):
        magnet.generate_tokens(["a flute"], seconds=1.0, decoding=DecodingConfig(parity=True))
    prompt = torch.zeros(1, 4, 50, dtype=torch.int64)
    with pytest.raises(UserError, match="keep"):
        magnet.generate_tokens(["a flute"], seconds=1.0, prompt=prompt, keep=torch.ones(1, 50).bool())


def test_a_prompt_that_cannot_begin_a_long_clip(magnet: Magnet) -> None:
    with pytest.raises(UserError, match="the prompt has 60 frames"):
        magnet.generate_tokens(["a flute"], seconds=1.0, prompt=torch.zeros(1, 4, 60, dtype=torch.int64))
    beyond = torch.full((1, 4, 40), magnet.lm.card)  # the first window would not show it
    with pytest.raises(UserError, match="model's own codec"):
        magnet.generate_tokens(["a flute"], seconds=2.0, prompt=beyond)
