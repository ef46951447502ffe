"""Restricted attention, prepared texts and queried frames against the plain computation."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny, tokens_of
from torch import nn

from harness.attention import context_mask
from magnet_train.masking import at_frames
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.models.attention import (
    CrossAttention,
    TextMemory,
    TextStates,
    attention,
    window_of,
    windowed_attention,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("context", [0, 1, 5, 40])
@pytest.mark.parametrize("frames", [2, 31, 128, 129, 160, 161])
def test_window_is_the_context_mask(frames, context):
    q, k, v = (random(2, frames, 12, seed=i).requires_grad_() for i in range(3))
    dense = attention(q, k, v, 3, context_mask(frames, context))
    window = window_of(frames, context)
    if window is None:
        assert context_mask(frames, context).all()
        return
    ours = windowed_attention(q, k, v, 3, window)
    torch.testing.assert_close(ours, dense, atol=1e-6, rtol=0)
    weights = random(2, frames, 12, seed=3)
    for ours_grad, dense_grad in zip(
        torch.autograd.grad((ours * weights).sum(), (q, k, v)),
        torch.autograd.grad((dense * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, dense_grad, atol=2e-6, rtol=0)


def test_nothing_grows_with_the_square_of_the_clip():
    def saved_bytes(frames: int) -> list[int]:
        lm = MagnetTransformer(4, 16, 12, dim=32, num_heads=4, num_layers=2)
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tokens = torch.zeros(1, 4, frames, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = lm.hidden(tokens, 1).sum()
        loss.backward()
        return list(seen.values())

    small, large = saved_bytes(640), saved_bytes(2560)
    assert sum(large) < 4.1 * sum(small)  # a [T, T] tensor would make it grow 16-fold
    assert max(large) < 2560 * 2560  # bytes of one mask of bool


def cross(dim: int = 32, num_heads: int = 2) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(dim, num_heads)


@pytest.mark.parametrize("length", [1, 5, 8])
@pytest.mark.parametrize("masked", [True, False])
def test_prepared_texts_read_alike(length, masked):
    layer = cross()
    readable = torch.arange(length)[None] < torch.tensor([[length], [max(length - 2, 1)]])
    text = TextStates(random(2, length, 32), readable[:, None, None, :] if masked else None)
    frames = random(2, 20, 32, seed=1)
    keys = TextMemory(layer.k_proj(text.states), layer.v_proj(text.states), text.readable)
    folded = layer.prepare(text)
    assert isinstance(folded, TextMemory)
    assert folded.keys.dim() == 4
    expected = layer(frames, text)
    torch.testing.assert_close(layer(frames, keys), expected)
    torch.testing.assert_close(layer(frames, folded), expected, atol=1e-6, rtol=1e-5)


def test_a_long_text_keeps_its_keys():
    memory = cross().prepare(TextStates(random(1, 9, 32), None))
    assert isinstance(memory, TextMemory)
    assert memory.keys.dim() == 3


def test_an_adapter_is_not_bypassed():
    class Adapter(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = cross()
    layer.q_proj.__class__ = Adapter
    text = TextStates(random(1, 5, 32), None)
    assert layer.prepare(text) is text


def text_of(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return random(len(lengths), max(lengths), 12), mask


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("text_key_mask", [True, False])
@pytest.mark.parametrize("lengths", [[3, 0, 5, 0], [0, 4, 2, 1], [0, 0, 0, 0], [1, 2, 3, 4]])
def test_clips_without_text_skip_cross_attention_exactly(lengths, text_key_mask, stage):
    lm = tiny(text_key_mask=text_key_mask)
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    text = random(4, 5, 12)
    weights = random(4, 40, 32, seed=2)
    results = []
    for rows in (None, range(4)):  # skipped, and computed for everybody
        lm.zero_grad()
        states = lm.hidden(tokens_of(4, 40), stage, text, mask, rows)
        (states * weights).sum().backward()
        results.append(
            (
                states.detach(),
                {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None},
            )
        )
    (ours, our_grads), (plain, plain_grads) = results
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    assert our_grads.keys() == plain_grads.keys() == {n for n, _ in lm.named_parameters()} - {"heads"}
    for name, grad in plain_grads.items():
        torch.testing.assert_close(our_grads[name], grad, atol=1e-5, rtol=1e-5)


def test_guidance_reads_the_text_once_and_answers_alike():
    lm = tiny()
    text, mask = text_of([3, 6])
    tokens = tokens_of(2, 40)
    guided = GuidedLogits(lm, text, mask)
    with torch.no_grad():
        conditional, null = lm(tokens, 1, text, mask), lm(tokens, 1)
        torch.testing.assert_close(guided(tokens, 1, 3.0), null + 3 * (conditional - null), atol=1e-5, rtol=0)
        frames = torch.tensor([[0, 7, 39], [5, 5, 2]])
        at_some = guided.at(tokens, 1, 3.0, frames)
        at_all = guided(tokens, 1, 3.0)
    for row in range(2):
        torch.testing.assert_close(at_some[row], at_all[row, frames[row]], atol=1e-5, rtol=0)


def test_without_guidance_the_clip_without_text_is_not_computed():
    lm = tiny()
    batches = []
    lm.out_norm.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    guided = GuidedLogits(lm, *text_of([3, 6]))
    for cfg_coef in (3.0, 1.0):
        guided(tokens_of(2, 40), 1, cfg_coef)
    assert batches == [4, 2]


@torch.no_grad()
def widths_at(
    lm: MagnetTransformer, num_frames: int, stage: int, frames: torch.Tensor
) -> list[tuple[int, int]]:
    """Ask for some frames, compare with an answer for all, and return the frames into and out of each layer."""
    tokens = tokens_of(2, num_frames)
    guided = GuidedLogits(lm, *text_of([3, 6]))
    at_all = guided(tokens, stage, 3.0)
    widths: list[tuple[int, int]] = []
    for layer in lm.layers:
        layer.register_forward_hook(
            lambda module, inputs, output: widths.append((inputs[0].shape[1], output.shape[1]))
        )
    at_some = guided.at(tokens, stage, 3.0, frames)
    torch.testing.assert_close(at_some, at_frames(at_all, frames), atol=1e-5, rtol=0)
    return widths


@pytest.mark.parametrize("frames", [[[0, 1, 2], [197, 198, 199]], [[11, 12, 13], [90, 91, 92]]])
@pytest.mark.parametrize("context", [5, 0])
def test_a_span_is_predicted_as_with_all_frames(frames, context):
    lm = tiny(num_layers=4, subcodes_context=context)
    assert widths_at(lm, 200, 2, torch.tensor(frames)) == [(200, 200)] * 3 + [(200, 3)]


@pytest.mark.parametrize("stage", [0, 2])
def test_only_the_last_layer_leaves_frames_out(stage):
    widths = widths_at(tiny(), 200, stage, torch.arange(0, 200, 7).repeat(2, 1))
    assert widths == [(200, 200), (200, 29)]
