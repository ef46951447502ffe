"""Compiled layers: how often they are compiled over a run whose steps differ, and that they answer alike."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from magnet_train.decoding import DecodingConfig, generate_tokens
from magnet_train.models import GuidedLogits, MagnetTransformer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tiny(positions: str = "sinusoidal") -> MagnetTransformer:
    torch.manual_seed(0)
    return MagnetTransformer(4, 16, text_dim=12, dim=32, num_heads=4, num_layers=3, positions=positions)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_no_step_and_no_stage_compiles_anew(positions):
    plain, lm = tiny(positions), tiny(positions)
    counter = CompileCounter()
    lm.compile_layers(counter)
    counter.clear()  # compile_layers first tries whether anything can be compiled
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


def generate(
    lm: MagnetTransformer, text: torch.Tensor, steps: tuple[int, ...], progress=None
) -> torch.Tensor:
    return generate_tokens(
        GuidedLogits(lm, text),
        (2, 4, 300),
        DecodingConfig(decoding_steps=steps),
        card=16,
        span_len=3,
        generator=torch.Generator().manual_seed(0),
        progress=progress,
    )


@pytest.mark.parametrize("whole", [False, True])
def test_no_step_of_a_generation_compiles_anew(whole):
    plain, lm = tiny().eval(), tiny().eval()
    counter = CompileCounter()
    if whole:  # as the benchmark compiles for a GPU
        lm.states = torch.compile(lm.states, backend=counter)
    else:
        lm.compile_layers(counter)
    text = torch.randn(2, 3, 12)
    compiled = []
    steps = (6, 4, 4, 4)
    tokens = generate(lm, text, steps, progress=lambda done, total: compiled.append(counter.frame_count))
    assert torch.equal(tokens, generate(plain, text, steps))
    # Restricted or not, with the rows without text or without them, and what the last span can see.
    assert compiled[-1] <= 12
    assert compiled[9:] == [compiled[9]] * 9  # nothing new after the second codebook
    generate(lm, text, (8, 5, 3, 4))
    assert counter.frame_count == compiled[-1]
