"""Rescoring in the decoder: hand-made rescorers with known probabilities, and what must not depend on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from magnet_train.decoding import DecodingConfig, Rescorer, generate_tokens
from magnet_train.errors import UserError

CARD, SPAN = 11, 3
STEPS = (5, 3, 2, 1)
SETTINGS = [
    {"span_arrangement": "nonoverlap", "span_scoring": "max"},
    {"span_arrangement": "nonoverlap", "span_scoring": "prod"},
    {"span_arrangement": "stride1"},
    {"span_arrangement": "nonoverlap", "parity": True},
]


class Remembering:
    """Gives probabilities that depend on the tokens of each clip alone, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, int]] = []

    def __call__(self, tokens: Tensor, stage: int) -> Tensor:
        self.calls.append((tokens.clone(), stage))
        return torch.stack([(row[stage] * 7 + row.sum() + stage) % 13 / 13 + 0.01 for row in tokens])


def unused(tokens: Tensor, stage: int) -> Tensor:
    raise AssertionError("the rescorer was asked")


def random_logits(tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
    rows = []
    for row in tokens:
        generator = torch.Generator().manual_seed(int(row.sum()) + stage)
        rows.append(torch.randn(row.shape[-1], CARD, generator=generator))
    return torch.stack(rows)


def generate(
    rescorer: Rescorer | None, weight: float, batch: int = 2, frames: int = 32, **options: Any
) -> Tensor:
    settings = options.pop("settings", {})
    decoding = DecodingConfig(decoding_steps=STEPS, rescorer_weight=weight, **settings)
    options.setdefault("generator", torch.Generator().manual_seed(0))
    return generate_tokens(
        random_logits, (batch, 4, frames), decoding, card=CARD, span_len=SPAN, rescorer=rescorer, **options
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_weight_zero_is_no_rescorer_bit_for_bit(settings: dict[str, Any]) -> None:
    without = generate(None, 0.5, settings=settings)
    assert torch.equal(generate(unused, 0.0, settings=settings), without)
    assert not torch.equal(generate(Remembering(), 0.5, settings=settings), without)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_same_seed_gives_the_same_clip(settings: dict[str, Any]) -> None:
    first = generate(Remembering(), 0.5, settings=settings)
    assert int(first.max()) < CARD
    assert torch.equal(generate(Remembering(), 0.5, settings=settings), first)


def test_it_is_asked_after_each_step_but_the_last_of_a_codebook() -> None:
    rescorer = Remembering()
    generate(rescorer, 0.5)
    assert [stage for _, stage in rescorer.calls] == [
        0,
        0,
        0,
        0,
        1,
        1,
        2,
    ]  # 5, 3, 2 and 1 steps, less one each
    for tokens, stage in rescorer.calls:
        assert int(tokens[:, : stage + 1].max()) < CARD
        assert bool((tokens[:, stage + 1 :] == CARD).all())


def hidden_in_each_step(
    sure: list[float], rescorer: list[float], weight: float, span_len: int, **settings: Any
) -> list[set[int]]:
    """Return the frames that were hidden going into each step of one codebook of two entries.

    The model gives its best token of each frame the probability `sure`, and the rescorer the probability `rescorer`.
    """
    seen: list[set[int]] = []

    def logits_fn(tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        seen.append(set((tokens[0, 0] == 2).nonzero()[:, 0].tolist()))
        probs = torch.tensor(sure)
        return torch.stack([probs, 1 - probs], dim=-1).log()[None]

    decoding = DecodingConfig(
        temperature=1.0, anneal_temperature=False, use_sampling=False, rescorer_weight=weight, **settings
    )
    generate_tokens(
        logits_fn,
        (1, 1, len(sure)),
        decoding,
        card=2,
        span_len=span_len,
        rescorer=lambda tokens, stage: torch.tensor([rescorer]),
    )
    return seen


@pytest.mark.parametrize("scoring", ["max", "prod"])
def test_weight_one_ranks_chunks_by_the_rescorer_alone(scoring: str) -> None:
    # Four chunks: 4, int(4 cos 30) = 3, int(4 cos 60) = 2 and at least 1 are hidden.
    sure = [p for p in (0.6, 0.9, 0.8, 0.7) for _ in range(3)]
    second = [p for p in (0.9, 0.2, 0.5, 0.7) for _ in range(3)]

    def chunks(weight: float) -> list[set[int]]:
        steps = {"decoding_steps": (4,), "span_scoring": scoring}
        return [
            {frame // 3 for frame in frames}
            for frames in hidden_in_each_step(sure, second, weight, 3, **steps)
        ]

    assert chunks(1.0) == [{0, 1, 2, 3}, {1, 2, 3}, {1, 2}, {1}]
    assert chunks(0.0) == [{0, 1, 2, 3}, {0, 2, 3}, {0, 3}, {0}]


def test_weight_one_ranks_overlapping_spans_by_the_rescorer_alone() -> None:
    sure = [0.6 if frame < 3 else 0.9 for frame in range(12)]
    second = [0.01 if frame in (5, 6, 7) else 0.9 for frame in range(12)]
    settings = {"decoding_steps": (4,), "span_arrangement": "stride1"}
    assert hidden_in_each_step(sure, second, 1.0, 3, **settings)[-1] == {5, 6, 7}
    assert hidden_in_each_step(sure, second, 0.0, 3, **settings)[-1] == {0, 1, 2}


@pytest.mark.parametrize(
    ("weight", "hidden"),
    [
        (0.0, [{0, 1, 2}, {1, 2}, {1}]),  # .9, .6, .7: frame 0 is kept, then 2
        (0.25, [{0, 1, 2}, {0, 1}, {1}]),  # .725, .675, .7625
        (0.29, [{0, 1, 2}, {0, 1}, {1}]),  # .697, .687, .7725
        (0.31, [{0, 1, 2}, {0, 1}, {0}]),  # .683, .693, .7775
        (1.0, [{0, 1, 2}, {0, 1}, {0}]),  # .2, .9, .95
    ],
)
def test_the_mixture_by_hand(weight: float, hidden: list[set[int]]) -> None:
    # One frame is a chunk: 3, int(3 cos 45) = 2 and at least 1 are hidden.
    seen = hidden_in_each_step([0.9, 0.6, 0.7], [0.2, 0.9, 0.95], weight, 1, decoding_steps=(3,))
    assert seen == hidden


@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_what_was_given_stays_and_is_not_judged(settings: dict[str, Any]) -> None:
    prompt = torch.randint(CARD, (2, 4, 32), generator=torch.Generator().manual_seed(3))
    keep = torch.zeros(2, 4, 32, dtype=torch.bool)
    keep[0, :, 10:17] = True
    keep[1, 2, 5:9] = True
    judge = Remembering()

    def without_the_given(tokens: Tensor, stage: int) -> Tensor:
        return judge(tokens, stage).masked_fill(keep[:, stage], math.nan)

    options = {"settings": settings, "prompt": prompt, "keep": keep}
    out = generate(judge, 0.7, **options)
    assert torch.equal(out[keep], prompt[keep])
    assert int(out.max()) < CARD
    options["generator"] = torch.Generator().manual_seed(0)
    assert torch.equal(generate(without_the_given, 0.7, **options), out)
    shown, stage = judge.calls[0]
    finer = keep[:, stage + 1 :]
    assert torch.equal(
        shown[:, stage + 1 :][finer], prompt[:, stage + 1 :][finer]
    )  # a prompt's finer codebooks


@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_clips_of_a_batch_are_those_made_alone(settings: dict[str, Any]) -> None:
    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = generate(Remembering(), 0.5, generator=seeded(5, 6), settings=settings)
    for row, seed in enumerate((5, 6)):
        alone = generate(Remembering(), 0.5, batch=1, generator=seeded(seed), settings=settings)
        assert torch.equal(together[row : row + 1], alone)


def test_where_nothing_is_ranked_a_rescorer_is_refused() -> None:
    with pytest.raises(UserError, match="does not rank spans"):
        generate(unused, 0.5, settings={"span_arrangement": "spread"})


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_out_of_range(weight: float) -> None:
    with pytest.raises(UserError, match="rescorer_weight"):
        generate(Remembering(), weight)


@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_a_step_asks_the_device_nothing(settings: dict[str, Any]) -> None:
    """On the meta device nothing could answer: `.item()`, `.nonzero()` and a copy to the CPU all raise there."""

    def zeros(*shape: int) -> Callable[..., Tensor]:
        return lambda *_: torch.zeros(shape, device="meta")

    decoding = DecodingConfig(decoding_steps=STEPS, **settings)
    tokens = generate_tokens(
        zeros(2, 32, CARD),
        (2, 4, 32),
        decoding,
        card=CARD,
        span_len=SPAN,
        rescorer=zeros(2, 32),
        device="meta",
    )
    assert tokens.shape == (2, 4, 32)
