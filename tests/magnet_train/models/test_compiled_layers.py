"""Compiled layers: how often they are compiled over a run whose steps differ, and that they answer alike."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.scale import compile_layers

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tiny() -> MagnetTransformer:
    torch.manual_seed(0)
    return MagnetTransformer(4, 16, text_dim=12, dim=32, num_heads=4, num_layers=3)


def test_no_step_and_no_stage_compiles_anew():
    plain, lm = tiny(), tiny()
    counter = CompileCounter()
    compile_layers(lm, counter)
    compiled = []
    steps = [(stage, rows, length) for length in (6, 11) for rows in (3, 2, 4) for stage in range(4)]
    for stage, rows, length in steps * 2:
        tokens = torch.randint(17, (4, 4, 150))
        text, mask = torch.randn(4, length, 12), torch.zeros(4, length, dtype=torch.bool)
        mask[:rows] = True
        states = lm.hidden(tokens, stage, text, mask)
        states.sum().backward()
        torch.testing.assert_close(states, plain.hidden(tokens, stage, text, mask))
        compiled.append(counter.frame_count)
    # Restricted or not, all clips with a text or some.
    assert compiled[-1] == 4
    assert compiled[-1] == compiled[len(steps) // 2]


def test_no_step_of_a_generation_compiles_anew():
    plain, lm = tiny().eval(), tiny().eval()
    counter = CompileCounter()
    compile_layers(lm, counter)
    text = torch.randn(2, 3, 12)
    compiled = []
    with torch.inference_mode():
        for stage in range(4):
            for cfg_coef in (5.0, 3.0, 1.0):
                tokens = torch.randint(17, (2, 4, 150))
                answer = GuidedLogits(lm, text)(tokens, stage, cfg_coef)
                torch.testing.assert_close(answer, GuidedLogits(plain, text)(tokens, stage, cfg_coef))
            compiled.append(counter.frame_count)
    # Restricted or not, with the rows without text or without them.
    assert compiled[-1] <= 4
    assert compiled[1:] == [compiled[1]] * 3
