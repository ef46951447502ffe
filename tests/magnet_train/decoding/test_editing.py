"""A part of a recording is made anew: which frames that are, what the model sees around them, what stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magnet_train import Magnet
from magnet_train.decoding.editing import Edit, plan_edit, splice
from magnet_train.errors import UserError
from magnet_train.pipeline.parts import ModelParts
from magnet_train.pipeline.request import ClipRequest, make_tokens

HOP, RATE = 160, 8000  # of the packaged codec: 50 Hz
FADE = 80  # samples


@pytest.fixture(scope="module")
def magnet(checkpoint: Path) -> Magnet:
    return Magnet.from_pretrained(checkpoint)


def recording(seconds: float) -> torch.Tensor:
    return 0.1 * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("region", "seconds", "expected"),
    [
        ((0.2, 0.3), 2.0, Edit(10, 15, 0, 24)),
        ((1.0, 1.1), 2.0, Edit(50, 55, 40, 64)),  # in the middle of what the model sees
        ((1.9, 2.0), 2.0, Edit(95, 100, 76, 100)),
        ((0.205, 0.301), 2.0, Edit(10, 16, 1, 25)),  # frames that are touched in part
        ((0.3, 0.58), 2.0, Edit(15, 29, 10, 34)),  # 0.58 * 50 is 28.999...
        ((0.1, 0.2), 0.3, Edit(5, 10, 0, 15)),  # a recording shorter than the model's clips
        ((0.0, 0.295), 0.295, Edit(0, 15, 0, 15)),  # all of it, with a part of a frame at the end
    ],
)
def test_the_frames_of_a_region(region: tuple[float, float], seconds: float, expected: Edit) -> None:
    assert plan_edit(region, seconds, frame_rate=50.0, segment=0.48) == expected


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ((0.3, 0.3), "0.3 to 0.3"),
        ((0.4, 0.3), "not within the recording"),
        ((-0.1, 0.3), "not within the recording"),
        ((1.9, 2.1), "2.000 s"),
        ((float("nan"), 1.0), "not within the recording"),
        ((0.2, 0.9), "0.48 s"),
    ],
)
def test_regions_that_cannot_be_made(region: tuple[float, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_edit(region, 2.0, 50.0, 0.48)


def test_splice_fades_outside_the_region_alone() -> None:
    old, new = torch.full((1, 100 * HOP), 0.5), torch.full((2, 1, 24 * HOP), -0.5)
    edited = splice(old, new, Edit(50, 55, 40, 64), HOP, RATE)
    assert edited.shape == (2, 1, 100 * HOP)
    first, end = 50 * HOP, 55 * HOP
    assert bool((edited[..., first:end] == -0.5).all())
    assert bool((edited[..., : first - FADE] == 0.5).all())
    assert bool((edited[..., end + FADE :] == 0.5).all())
    assert bool((edited[..., first - FADE : first].diff() < 0).all())
    assert bool((edited[..., end : end + FADE].diff() > 0).all())
    assert float(edited.diff().abs().max()) < 2 / FADE
    assert bool((old == 0.5).all())


def test_only_the_region_of_a_long_recording_changes(magnet: Magnet) -> None:
    audio = recording(2.013)
    edited = magnet.edit(audio, (1.0, 1.2), ["a low bell", None], seed=0)
    assert edited.shape == (2, *audio.shape)
    first, end = 50 * HOP, 60 * HOP
    for version in edited:
        assert torch.equal(version[:, : first - FADE], audio[:, : first - FADE])
        assert torch.equal(version[:, end + FADE :], audio[:, end + FADE :])
        assert not torch.equal(version[:, first:end], audio[:, first:end])
    assert not torch.equal(edited[0], edited[1])
    assert torch.equal(magnet.edit(audio, (1.0, 1.2), ["a low bell", None], seed=0), edited)


def test_the_model_sees_the_tokens_around_the_region(magnet: Magnet, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = recording(1.0)
    requests: list[ClipRequest] = []

    def remember(model: ModelParts, request: ClipRequest) -> torch.Tensor:
        requests.append(request)
        return make_tokens(model, request)

    monkeypatch.setattr("magnet_train.pipeline.magnet.make_tokens", remember)
    magnet.edit(audio, (0.5, 0.6), ["a low bell"], seed=0)
    clip = audio[None, :, 15 * HOP : 39 * HOP]  # frames 15 to 38 lie around 25 to 29
    (request,) = requests
    assert request.prompt is not None
    assert request.keep is not None
    assert torch.equal(request.prompt, magnet.codec.encode(clip))
    kept = torch.ones(24, dtype=torch.bool)
    kept[10:15] = False
    assert request.keep.tolist() == [kept.tolist()]


def test_the_end_of_a_recording_that_is_no_whole_frame(magnet: Magnet) -> None:
    audio = recording(0.295)
    edited = magnet.edit(audio, (0.2, 0.295), ["a low bell"], seed=0)
    assert edited.shape == (1, *audio.shape)
    assert torch.equal(edited[0, :, : 10 * HOP - FADE], audio[:, : 10 * HOP - FADE])


def test_recording_of_an_impossible_shape(magnet: Magnet) -> None:
    with pytest.raises(UserError, match=r"\[2, 8000\]"):
        magnet.edit(torch.zeros(2, 8000), (0.1, 0.2), ["a low bell"])
