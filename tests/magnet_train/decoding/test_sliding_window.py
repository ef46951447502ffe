"""Clips longer than the model's: windows begin with a bar, go on where the last one ended, and leave what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train import DecodingConfig, Magnet
from magnet_train.decoding.sliding_window import continue_tokens
from magnet_train.errors import UserError

HOP = 160  # samples a frame of the packaged codec: 8 kHz, 50 Hz
WINDOW = 24  # frames of the checkpoint's clips


@pytest.fixture(scope="module")
def magnet(checkpoint: Path) -> Magnet:
    return Magnet.from_pretrained(checkpoint)


def one_hot(tokens: Tensor) -> Tensor:
    """Features [B, D, T] of tokens [B, K, T]: which token of codebook 0 it is."""
    return F.one_hot(tokens[:, 0], 128).float().transpose(1, 2)


class CountOn:
    """Numbers the missing frames upwards from the last that stays, modulo a period; remembers the windows."""

    def __init__(self, period: list[int]) -> None:
        self.period = torch.tensor(period)[:, None]
        self.seen: list[Tensor] = []  # frames of each window that were there
        self.first: list[Tensor] = []  # tokens at the beginning of each window

    def __call__(self, prompt: Tensor, keep: Tensor, progress: object) -> Tensor:
        count = keep.sum(-1)
        last = prompt[:, 0].gather(1, (count - 1).clamp(min=0)[:, None])
        last = torch.where(count[:, None] > 0, last, -1)
        numbers = (last + 1 + torch.arange(prompt.shape[-1]) - count[:, None]) % self.period
        made = torch.where(keep, prompt[:, 0], numbers)[:, None]
        self.seen.append(count)
        self.first.append(made[:, 0, 0])
        return made


@pytest.mark.parametrize("num_frames", [65, 100, 256, 1000])
@pytest.mark.parametrize("prompt", [0, 9, 40, 63])
def test_each_window_begins_on_a_beat_and_goes_on_where_the_last_one_ended(
    num_frames: int, prompt: int
) -> None:
    periods = [7, 16, 21]
    expected = torch.stack([torch.arange(num_frames) % period for period in periods])[:, None]
    given = torch.full((3, 1, num_frames), 99)
    given[..., :prompt] = expected[..., :prompt]
    make = CountOn(periods)
    tokens = continue_tokens(given, prompt, 64, make, one_hot)
    assert torch.equal(tokens, expected)
    assert int(torch.stack(make.first).max()) == 0  # every window of every clip
    for seen in make.seen[1:-1]:
        assert ((seen >= 16) & (seen <= 48) | (seen == 64)).all()  # 64: this clip has all its frames
    assert torch.equal(
        given[..., prompt:], torch.full_like(given[..., prompt:], 99)
    )  # what came in is as it was


@pytest.mark.parametrize("bar", [12, 20, 32, 36, 40])  # frames; 40 are 5/8 of the window
def test_windows_begin_with_a_bar_though_its_beats_sound_alike(bar: int) -> None:
    """A model whose clips begin with a bar plays the first beat there, whatever came before."""
    beat = bar // 4
    place = torch.arange(10 * bar)
    # Drums, the same on each beat, and a bass that is not.
    song = torch.stack([place % beat, place % bar // beat])[None]

    def make(prompt: Tensor, keep: Tensor, progress: object) -> Tensor:
        return torch.where(keep[:, None], prompt, song[..., : prompt.shape[-1]])

    def features(tokens: Tensor) -> Tensor:
        return torch.cat([F.one_hot(row, 16).float().transpose(1, 2) for row in tokens.unbind(1)], dim=1)

    assert torch.equal(continue_tokens(torch.zeros_like(song), 0, 64, make, features), song)


def test_the_end_of_a_window_is_made_again_but_for_the_last() -> None:
    class Ending:
        """Makes windows that end in 7, as the clips of a training do."""

        def __call__(self, prompt: Tensor, keep: Tensor, progress: object) -> Tensor:
            window = torch.zeros_like(prompt)
            window[..., -4:] = 7
            return torch.where(keep[:, None], prompt, window)

    tokens = continue_tokens(torch.full((1, 2, 200), 99), 0, 64, Ending(), one_hot)
    assert int(tokens[..., :-64].max()) == 0


@pytest.mark.parametrize("window", range(1, 9))
def test_windows_of_a_few_frames_come_to_an_end(window: int) -> None:
    count_on, windows = CountOn([100]), 0

    def make(prompt: Tensor, keep: Tensor, progress: object) -> Tensor:
        nonlocal windows
        windows += 1
        assert windows <= 12
        return count_on(prompt, keep, progress)

    tokens = continue_tokens(torch.full((1, 1, 12), 99), 0, window, make, one_hot)
    if window > 1:  # else no frame is seen, and each begins with 0
        assert tokens[0, 0].tolist() == list(range(12))


def test_nothing_is_made_where_nothing_is_missing() -> None:
    given = torch.arange(100).expand(1, 1, -1)
    assert torch.equal(continue_tokens(given, 100, 64, CountOn([7]), one_hot), given)


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
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
    assert torch.equal(make(0), tokens)
    assert not torch.equal(make(1), tokens)
    first = magnet.generate_tokens(["a low bell", None], seed=0, decoding=decoding)
    whole = WINDOW - WINDOW // 8  # what follows is made again in sight of the next window
    assert torch.equal(tokens[..., :whole], first[..., :whole])


def test_the_rest_of_a_song_is_made_from_its_end(magnet: Magnet) -> None:
    song = 0.1 * torch.randn(1, 90 * HOP, generator=torch.Generator().manual_seed(0))
    codes = magnet.codec.encode(song[None])
    audio = magnet.generate(["a flute"], seconds=2.2, seed=0, prompt=song)
    assert audio.shape == (1, 1, 110 * HOP)
    tokens = magnet.generate_tokens(["a flute"], seconds=2.2, seed=0, prompt=codes)
    assert torch.equal(tokens[..., :90], codes)
    assert torch.equal(magnet.codec.decode(tokens), audio)
    # What lies before the first window has no say, but for the beginning, which says where the beat is.
    other = codes.clone()
    other[..., 9:70] = (codes[..., 9:70] + 1) % magnet.lm.card
    again = magnet.generate_tokens(["a flute"], seconds=2.2, seed=0, prompt=other)
    assert torch.equal(again[..., 90:], tokens[..., 90:])


def test_what_has_to_be_made_in_one_go(magnet: Magnet) -> None:
    with pytest.raises(UserError, match="parity"):
        magnet.generate_tokens(["a flute"], seconds=1.0, decoding=DecodingConfig(parity=True))
    prompt = torch.zeros(1, 4, 50, dtype=torch.int64)
    with pytest.raises(UserError, match=r"`keep`.*0\.48 s"):
        magnet.generate_tokens(["a flute"], seconds=1.0, prompt=prompt, keep=torch.arange(50)[None] < 9)


def test_a_prompt_that_cannot_begin_a_long_clip(magnet: Magnet) -> None:
    with pytest.raises(UserError, match="the prompt has 60 frames"):
        magnet.generate_tokens(["a flute"], seconds=1.0, prompt=torch.zeros(1, 4, 60, dtype=torch.int64))
    beyond = torch.full((1, 4, 40), magnet.lm.card)  # the first window would not show it
    with pytest.raises(UserError, match="model's own codec"):
        magnet.generate_tokens(["a flute"], seconds=2.0, prompt=beyond)
