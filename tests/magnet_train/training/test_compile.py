"""Compiled layers: a graph for each way of being called, and none for another step, codebook or text."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from magnet_train.models import MagnetTransformer
from magnet_train.training.objective import masked_cross_entropy_sum, predict_masked
from magnet_train.training.parallel import recompute_activations

FRAMES = 40


def loss_of(lm: MagnetTransformer, stages: list[int], captions: int, text_len: int) -> torch.Tensor:
    """Loss of clips of which the first `captions` have one, after its backward pass."""
    generator = torch.Generator().manual_seed(text_len)
    clips = len(stages)
    mask = torch.rand(clips, FRAMES, generator=generator) < 0.5
    text_mask = torch.rand(clips, text_len, generator=generator) < 0.8
    text_mask[:, 0] = True
    text_mask[captions:] = False
    predictions = predict_masked(
        lm,
        torch.randint(16, (clips, 4, FRAMES), generator=generator),
        mask,
        torch.ones_like(mask),
        stages,
        torch.randn(clips, text_len, 8, generator=generator),
        text_mask,
    )
    total = torch.stack([masked_cross_entropy_sum(p.logits, p.targets) for p in predictions]).sum()
    total.backward()
    return total.detach()


@pytest.mark.slow
def test_no_graph_is_made_twice():
    torch.manual_seed(0)
    lm = MagnetTransformer(4, 16, 8, dim=48, num_heads=2, num_layers=2)
    plain = copy.deepcopy(lm)
    torch.compiler.reset()
    lm.compile_layers(backend="eager")  # traces and guards like any other backend, without minutes of code
    counters.clear()
    steps = [([0] * 16, 16, 5), ([1] * 16, 16, 5), ([0] * 16, 8, 5), ([1] * 16, 8, 5)]  # each way once
    steps += [([stage] * 16, 7 + stage, 2 + stage) for stage in range(4)]
    steps += [([0, 1, 2, 3] * 4, 8, 9), ([0, 0, 1, 3] * 4, 10, 4), ([0, 1, 2, 3] * 4, 16, 12)]
    graphs = []
    for step in steps:
        torch.testing.assert_close(loss_of(lm, *step), loss_of(plain, *step))
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert 2 <= graphs[3] <= 4
    assert graphs[4:] == [graphs[3]] * (len(graphs) - 4)
    assert lm.state_dict().keys() == plain.state_dict().keys()


def test_recomputed_activations_give_the_same_gradients():
    torch.manual_seed(0)
    lm = MagnetTransformer(4, 16, 8, dim=48, num_heads=2, num_layers=2)
    kept = copy.deepcopy(lm)
    recompute_activations(lm)
    saved: dict[str, int] = {}

    def numbers_saved(model: MagnetTransformer) -> int:
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_of(model, [2] * 8, 4, 5)
        return count

    saved = {"all": numbers_saved(kept), "few": numbers_saved(lm)}
    for (name, a), (_, b) in zip(lm.named_parameters(), kept.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert lm.state_dict().keys() == kept.state_dict().keys()
    assert saved["few"] < saved["all"]
