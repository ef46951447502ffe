"""Properties of the maths; the exact numbers are in tests/reference."""

from __future__ import annotations

import math

import pytest
import torch

from harness.attention import context_mask
from magnet_train.masking import (
    least_probable_spans,
    mask_for_stage,
    mask_rate,
    span_count_table,
    span_mask,
    spans_from_starts,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_rate_follows_the_cosine():
    assert mask_rate(torch.tensor([0.0, 1 / 3, 1.0])).tolist() == pytest.approx(
        [1.0, math.cos(math.pi / 6), 0.0], abs=1e-6
    )


def test_table_of_published_lengths():
    # facts of the paper's appendix C for ten and thirty seconds
    ten, thirty = span_count_table(500, 3), span_count_table(1500, 3)
    assert [ten[p] for p in (1, 10, 25, 50, 75, 90, 99, 100)] == [2, 18, 46, 103, 185, 268, 392, 498]
    assert [thirty[p] for p in (1, 10, 25, 50, 75, 90, 99, 100)] == [6, 52, 138, 310, 555, 804, 1177, 1498]


@pytest.mark.parametrize(("frames", "span_len"), [(2, 3), (5, 0)])
def test_table_refuses_spans_that_do_not_fit(frames, span_len):
    with pytest.raises(ValueError, match="span_len"):
        span_count_table(frames, span_len)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("frames", [500, 1500])
def test_mean_rate_is_the_wanted_one(frames, rate):
    mask = span_mask(torch.full((1000,), rate), noise(1000, frames), 3)
    assert float(mask.float().mean()) == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("span_len", [1, 2, 3, 5])
def test_no_span_is_shorter_than_asked_for(span_len):
    mask = span_mask(torch.full((200,), 0.3), noise(200, 60), span_len)
    for row in mask.tolist():
        runs = "".join("#" if m else "." for m in row).split(".")
        inner = [len(run) for run in runs[:-1] if run]  # the last run may be cut at the end of the clip
        assert all(length >= span_len for length in inner)


def test_something_is_always_masked():
    assert span_mask(torch.zeros(4), noise(4, 30), 3).any(dim=-1).all()


def test_single_frames_are_counted_exactly():
    assert span_mask(torch.tensor([0.25, 0.5]), noise(2, 40), 1).sum(dim=-1).tolist() == [10, 20]


def test_spans_are_cut_at_the_end():
    starts = torch.tensor([[False, False, False, True]])
    assert spans_from_starts(starts, 3).tolist() == [[False, False, False, True]]


def test_stage_mask_hides_what_is_above_and_shows_what_is_below():
    tokens = torch.arange(2 * 4 * 6).view(2, 4, 6) % 7
    mask = noise(2, 6) < 0.5
    seen = mask_for_stage(tokens, mask, 1, mask_id=7)
    assert torch.equal(seen, mask_for_stage(tokens, mask, torch.full((len(tokens),), 1), mask_id=7))
    assert torch.equal(seen[:, 0], tokens[:, 0])
    assert torch.equal(seen[:, 1] == 7, mask)
    assert torch.equal(seen[:, 1][~mask], tokens[:, 1][~mask])
    assert (seen[:, 2:] == 7).all()
    assert (tokens < 7).all()  # the input is left alone


def test_context_has_eleven_keys_in_the_middle_and_six_at_the_edges():
    counts = context_mask(40, 5).sum(dim=-1)
    assert counts[20] == 11
    assert counts[0] == counts[-1] == 6


def test_least_probable_spans_take_the_worst_first():
    scores = torch.zeros(30)
    scores[10:13] = 5.0
    mask = least_probable_spans(scores, 3, 3)
    assert mask[10:13].all()
    assert int(mask.sum()) == 3
