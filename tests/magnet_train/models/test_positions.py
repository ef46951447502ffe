"""Sinusoidal and rotary positions: what depends on the place in a clip; exact logits are in tests/reference."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny, tokens_of

from magnet_train.decoding import DecodingConfig, generate_tokens
from magnet_train.errors import UserError
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.models.positions import rotate, rotation_of


def test_products_of_turned_queries_and_keys_depend_on_the_distance():
    generator = torch.Generator().manual_seed(0)
    # The same at each of 40 frames.
    q, k = (torch.randn(1, 1, 16, generator=generator).expand(1, 40, 16) for _ in range(2))
    rotation = rotation_of(40, head_dim=8)
    assert rotation.shape == (40, 4)
    products = torch.einsum("bqhd,bkhd->hqk", *(rotate(x, rotation).view(1, 40, 2, 8) for x in (q, k)))
    for head in products:
        for distance in range(-39, 40):
            diagonal = head.diagonal(distance)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert products[0, 0, :10].std() > 0.1
    assert torch.equal(rotate(q, torch.ones_like(rotation)), q)
    assert rotate(q.bfloat16(), rotation).dtype == torch.bfloat16


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("frames", [100, 300])  # one block of restricted attention, several
def test_only_rotary_positions_read_a_moved_clip_alike(positions, frames):
    """Above the first codebook a frame sees layers x context frames, so the inner ones know nothing of the ends."""
    lm = tiny(positions=positions, subcodes_context=3)
    tokens, moved_by, reach = tokens_of(2, frames), 7, 6
    with torch.inference_mode():
        here = lm(tokens, 1)[:, moved_by + reach : -reach]
        moved = lm(tokens[..., moved_by:], 1)[:, reach:-reach]
    if positions == "rotary":
        torch.testing.assert_close(here, moved, atol=1e-5, rtol=1e-5)
    else:
        assert (here - moved).abs().mean() > 0.01


def test_order_counts():
    lm = tiny(positions="rotary")
    tokens = tokens_of(1, 50)
    backwards = lm(tokens.flip(-1), 0).flip(1)
    assert (lm(tokens, 0) - backwards).abs().mean() > 0.001


def test_decoding_of_single_frames_reads_them_as_the_whole_does():
    lm = tiny(positions="rotary")
    queried = torch.tensor([[3, 40, 99], [0, 1, 2]])
    tokens = tokens_of(2, 100)
    whole = lm.states(tokens, 2)
    expected = whole.gather(1, queried[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(lm.states(tokens, 2, query_frames=queried), expected, atol=1e-5, rtol=1e-5)


def test_generates_and_trains_every_weight():
    lm = tiny(positions="rotary")
    lm.hidden(tokens_of(2, 60), 0, torch.randn(2, 3, 12)).sum().backward()
    assert {name for name, p in lm.named_parameters() if p.grad is None} == {"heads"}
    tokens = generate_tokens(
        GuidedLogits(lm, torch.randn(2, 3, 12)),
        (2, 4, 60),
        DecodingConfig(decoding_steps=(3, 2, 2, 2)),
        card=16,
        span_len=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert tokens.max() < 16


def test_config_names_what_is_not_the_default():
    assert "positions" not in tiny().config
    assert tiny(positions="rotary").config["positions"] == "rotary"
    assert MagnetTransformer(**tiny(positions="rotary").config).positions == "rotary"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "rope"}, "positions 'rope' must be one of sinusoidal, rotary"),
        ({"positions": "rotary", "dim": 12, "num_heads": 4}, "heads of even width, not 3"),
    ],
)
def test_positions_that_cannot_be(changes, words):
    with pytest.raises(UserError, match=words):
        tiny(**changes)
