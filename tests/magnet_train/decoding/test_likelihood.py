"""The decoder's likelihood against counting: it sums to one over all clips, and is how often each is made."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magnet_train.decoding import DecodingConfig, generate_tokens, log_likelihood
from magnet_train.errors import UserError

CARD, N_Q = 2, 2
FREE = DecodingConfig(
    decoding_steps=(3, 2),
    span_arrangement="spread",
    temperature=1.0,
    anneal_temperature=False,
    top_p=0.0,
    max_cfg_coef=1.0,
)
TABLE = torch.randn(997, CARD, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def table_logits(tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
    """Logits that depend on everything that is shown, on the frame, the codebook and guidance."""
    places = 3 ** torch.arange(tokens[0].numel()).view(tokens.shape[1:])
    seen = (tokens * places).sum(dim=(1, 2))[:, None] * 7 + torch.arange(tokens.shape[-1]) * 31 + stage
    return cfg_coef * TABLE[seen % len(TABLE)]


def all_clips(frames: int) -> Tensor:
    rows = itertools.product(range(CARD), repeat=N_Q * frames)
    return torch.tensor(list(rows)).view(-1, N_Q, frames)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _ in range(count)]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 3.0, "anneal_temperature": True},
        {"top_p": 0.7},
        {"top_k": 1},
        {"max_cfg_coef": 4.0},
        {"decoding_steps": (1, 1)},
        {"decoding_steps": (4, 6)},
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_all_clips_together_have_probability_one(change: dict[str, object], seed: int) -> None:
    clips = all_clips(4)
    nats = log_likelihood(
        table_logits, clips, replace(FREE, **change), card=CARD, generator=generators(len(clips), seed)
    )
    assert nats.dtype == torch.float64
    assert bool((nats <= 0).all())
    assert float(nats.sum(dim=-1).exp().sum()) == pytest.approx(1.0, abs=1e-9)
    # Of the first codebook alone as well: each of its 16 rows stands beside 16 of the second.
    assert float(nats[:, 0].exp().sum()) == pytest.approx(16.0, abs=1e-8)


def test_it_is_how_often_the_decoder_makes_a_clip() -> None:
    """20,000 clips of 3 frames; the mean over 10,000 first frames stands for the decoder, which draws its own."""
    clips, draws = all_clips(3), 20_000
    made = generate_tokens(
        table_logits,
        (draws, N_Q, 3),
        FREE,
        card=CARD,
        span_len=3,
        generator=torch.Generator().manual_seed(0),
    )
    index = (made.flatten(1) * 2 ** torch.arange(N_Q * 3 - 1, -1, -1)).sum(dim=-1)
    counts = index.bincount(minlength=len(clips)).double()
    rounds = 10_000  # so many that their own chance adds nothing that counts
    repeated = clips.repeat(rounds, 1, 1)
    nats = log_likelihood(table_logits, repeated, FREE, card=CARD, generator=torch.Generator().manual_seed(1))
    probability = nats.sum(dim=-1).exp().view(rounds, -1).mean(dim=0)
    chi_square = float(((counts - draws * probability) ** 2 / (draws * probability)).sum())
    assert (
        chi_square < 120
    )  # 63 degrees of freedom: 120 has a probability below 2e-5; a wrong order gives thousands
    shuffled = float(((counts - draws * probability.roll(1)) ** 2 / (draws * probability.roll(1))).sum())
    assert shuffled > 1000


def test_more_steps_are_more_probable_to_a_model_that_knows() -> None:
    """Neighbours are equal, or nearly: who samples them in one step cannot know."""

    def neighbours(tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        row = tokens[:, stage]
        votes = torch.zeros(*row.shape, CARD)
        for shift in (1, -1):
            beside = row.roll(shift, dims=-1)
            votes += torch.nn.functional.one_hot(beside, CARD + 1)[..., :CARD]
        return 4.0 * votes

    clips = torch.tensor([[[0] * 16] * 2, [[1] * 16] * 2])
    means = [
        float(
            log_likelihood(neighbours, clips, replace(FREE, decoding_steps=(steps, steps)), card=CARD)
            .sum(dim=-1)
            .mean()
        )
        for steps in (1, 4, 16)
    ]
    assert means[0] == pytest.approx(-32 * torch.tensor(2.0).log().item())  # all at once: pure chance
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"span_arrangement": "nonoverlap"}, "nonoverlap"),
        ({"use_sampling": False}, "use_sampling"),
        ({"decoding_steps": (1, 1, 1)}, "decoding_steps"),
    ],
)
def test_what_has_no_likelihood(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        log_likelihood(table_logits, all_clips(2)[:1], replace(FREE, **change), card=CARD)
