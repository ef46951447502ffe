"""Operations of a step against torch's own count, and how durations are told."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from magnet_train.callbacks.progress import spell_time
from magnet_train.callbacks.speed import flops_per_clip
from magnet_train.models import MagnetTransformer


@pytest.mark.parametrize("frames", [64, 256])
def test_operations_are_those_that_torch_counts(frames):
    """Within 3 %, with a text of one token; in the kernel whose products torch counts on a CPU."""
    lm = MagnetTransformer(
        n_q=4, card=512, text_dim=64, dim=128, num_heads=4, num_layers=3, subcodes_context=-1
    )
    tokens = torch.randint(0, 512, (2, 4, frames))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        lm(tokens, 1, torch.randn(2, 1, 64), torch.ones(2, 1, dtype=torch.bool)).sum().backward()
    assert flops_per_clip(lm, frames) == pytest.approx(counter.get_total_flops() / 2, rel=0.03)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (4800, "1 h 20 min"), (183600, "2 d 3 h")],
)
def test_durations(seconds, words):
    assert spell_time(seconds) == words
