"""The step profile against the likelihood of the whole decoder, on models whose need of passes is known."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from magnet_train.decoding import DecodingConfig, StepProfile, log_likelihood
from magnet_train.decoding.sampling import clip_generators
from magnet_train.decoding.step_profile import PASSES, nats_by_passes
from magnet_train.errors import UserError

CARD, FRAMES = 4, 48


def independent(tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
    """Each frame's token has the same probabilities whatever the others are."""
    return torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(len(tokens), tokens.shape[-1], CARD)


def chain(tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
    """A token is that of its neighbours, as far as they are shown; the second codebook is independent."""
    if stage == 1:
        return independent(tokens, stage, cfg_coef)
    logits = torch.zeros(len(tokens), tokens.shape[-1], CARD)
    for shift in (1, -1, 2, -2):
        beside = tokens[:, 0].roll(shift, dims=-1)
        logits += 2.0 * torch.nn.functional.one_hot(beside, CARD + 1)[..., :CARD]
    return logits


def clips(count: int = 8) -> Tensor:
    """First codebook: runs of equal tokens. Second: drawn from the probabilities of `independent`."""
    generator = torch.Generator().manual_seed(0)
    runs = torch.randint(CARD, (count, FRAMES // 12), generator=generator).repeat_interleave(12, dim=-1)
    probs = torch.softmax(independent(torch.zeros(1, 1, 1), 1, 1.0)[0, 0], dim=-1)
    drawn = torch.multinomial(probs.expand(count, CARD), FRAMES, replacement=True, generator=generator)
    return torch.stack([runs, drawn], dim=1)


def profile_of(logits_fn: Any) -> StepProfile:
    return StepProfile.of(nats_by_passes(logits_fn, clips(), card=CARD), "0" * 64)


@pytest.mark.parametrize("column", range(len(PASSES)))
def test_a_curve_is_the_likelihood_of_the_whole_decoder(column: int) -> None:
    tokens, passes = clips(3), PASSES[column]
    nats = nats_by_passes(chain, tokens, card=CARD, first_index=5)
    whole = DecodingConfig((passes, 1), "spread", top_p=0.0, max_cfg_coef=1.0)
    generators = clip_generators(0, range(5, 8), "cpu")
    expected = -log_likelihood(chain, tokens, whole, card=CARD, generator=generators) / FRAMES
    assert torch.allclose(nats[:, 0, column], expected[:, 0])
    assert torch.allclose(nats[:, 1, 0], expected[:, 1])


def test_a_clip_is_measured_the_same_in_any_batch() -> None:
    alone = [
        nats_by_passes(chain, clip[None], card=CARD, first_index=number)
        for number, clip in enumerate(clips(3))
    ]
    assert torch.allclose(torch.cat(alone), nats_by_passes(chain, clips(3), card=CARD))


def test_independent_tokens_need_one_pass_and_a_chain_needs_more() -> None:
    for quality in ("draft", "normal", "best"):
        assert profile_of(independent).choose(quality) == (1, 1)
        first, second = profile_of(chain).choose(quality)
        assert first > 2
        assert second == 1


def test_qualities_differ_by_what_may_be_lost() -> None:
    nats = ((3.0, 2.5, 2.04, 2.005, 2.0, 2.001), (1.0, 1.0, 1.0, 1.0, 1.0, 0.999))
    profile = StepProfile(PASSES, nats, ((0.0,) * 6,) * 2, 9, "")
    assert profile.choose("draft") == (4, 1)
    assert profile.choose("normal") == (8, 1)
    assert profile.choose("best") == (16, 32)


def test_what_may_be_noise_buys_no_passes() -> None:
    """The error is that of the difference on the same clips, however much the clips themselves differ."""
    generator = torch.Generator().manual_seed(0)
    level = 5 * torch.rand(20, 1, 1, generator=generator, dtype=torch.float64)
    flat = level + 0.01 * torch.randn(20, 1, 6, generator=generator, dtype=torch.float64)
    falling = level - torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    found = StepProfile.of(torch.cat([flat, falling], dim=1), "")
    assert found.choose("best")[1] == 32
    assert max(found.std_error[0]) < 0.01
    assert found.choose("normal")[0] == 1


def test_progress_counts_all_passes() -> None:
    seen: list[tuple[int, int]] = []
    nats_by_passes(independent, clips(1), card=CARD, progress=lambda *each: seen.append(each))
    assert seen == [(done, 126) for done in range(1, 127)]


def test_a_clip_of_probability_0() -> None:
    with pytest.raises(UserError, match="probability 0"):
        StepProfile.of(torch.full((2, 1, 6), torch.inf, dtype=torch.float64), "")


def test_a_record_is_read_as_it_was_written() -> None:
    profile = profile_of(chain)
    assert StepProfile.from_record(json.loads(json.dumps(profile.to_dict())), 2, "model") == profile


@pytest.mark.parametrize(
    "change",
    [
        {"passes": []},
        {"passes": [1, 2, 4, 8, 16, 10**9]},
        {"passes": [1, 2, 4, 8, 16, 16]},
        {"passes": [0, 2, 4, 8, 16, 32]},
        {"passes": [True, 2, 4, 8, 16, 32]},
        {"passes": list(range(1, 1000))},
        {"passes": "124816"},
        {"nats": [[1.0] * 6]},
        {"nats": [[1.0] * 5] * 2},
        {"nats": [[1.0] * 6, 6]},
        {"nats": [[float("nan")] * 6] * 2},
        {"nats": [[float("inf")] * 6] * 2},
        {"nats": [["1.0"] * 6] * 2},
        {"nats": [[10**400] * 6] * 2},
        {"std_error": [[-0.1] * 6] * 2},
        {"std_error": None},
        {"clips": 0},
        {"clips": 2.5},
        {"sha256": None},
        {"more": 1},
    ],
)
def test_a_record_of_a_stranger(change: dict[str, Any]) -> None:
    record = profile_of(independent).to_dict() | change
    with pytest.raises(UserError, match=r"model\.json has a steps_profile .* measure it again"):
        StepProfile.from_record(record, 2, "model.json")


@pytest.mark.parametrize("record", [None, [], "draft", {}, {"passes": [1]}])
def test_no_record_at_all(record: object) -> None:
    with pytest.raises(UserError, match="steps_profile"):
        StepProfile.from_record(record, 2, "model.json")
