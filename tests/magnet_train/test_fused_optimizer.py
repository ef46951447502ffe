"""Fused optimizers clip gradients like any other, also in bfloat16, where Lightning alone would refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.module import MagnetModule
from magnet_train.text import ClassLabels
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo("tiny", "0" * 64, 8000, 1, 50.0, n_q=2, card=16)
FRAMES, RATE = 32, 0.1


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.randint(16, (4, 2, FRAMES), generator=generator),
        "valid": torch.ones(4, FRAMES, dtype=torch.bool),
        "noise": torch.rand(4, 2 + FRAMES, generator=generator),
        "text": ["a", "b"] * 2,
        "key": list("abcd"),
        "slot": torch.arange(4),
    }


def train(optimizer: Any, clip: float | None, algorithm: str | None = None, **trainer: Any) -> torch.Tensor:
    """Return how far each number of the model went in one step."""
    torch.manual_seed(0)
    module = MagnetModule(
        codec=CODEC,
        lm=partial(MagnetTransformer, dim=32, num_heads=4, num_layers=2),
        text=ClassLabels(["a", "b"], dim=8),
        segment_duration=FRAMES / 50,
        warmup_steps=0,
        optimizer=optimizer,
        decoding=DecodingConfig(decoding_steps=(3, 2)),
    )
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        gradient_clip_val=clip,
        gradient_clip_algorithm=algorithm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(module, DataLoader([batch()], batch_size=None))
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach() - before


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_fused_clips_like_unfused(precision, algorithm):
    # SGD goes as far as the gradient is long: what is left of it after clipping shows.
    moves = [
        train(partial(torch.optim.SGD, lr=RATE, fused=fused), 0.01, algorithm, precision=precision)
        for fused in (True, False)
    ]
    torch.testing.assert_close(*moves)
    if algorithm == "value":
        assert moves[0].abs().max() == pytest.approx(0.01 * RATE, rel=1e-3)
    else:
        assert moves[0].norm() == pytest.approx(0.01 * RATE, rel=1e-3)


def test_without_clipping_the_gradient_is_left_alone():
    free, clipped = (
        train(partial(torch.optim.SGD, lr=RATE, fused=True), clip, precision="bf16-mixed")
        for clip in (None, 0.01)
    )
    assert free.norm() > 2 * clipped.norm()


def test_adamw_fused_is_adamw():
    moves = [
        train(partial(torch.optim.AdamW, lr=RATE, fused=fused), 1.0, precision="bf16-mixed")
        for fused in (True, False)
    ]
    torch.testing.assert_close(*moves, rtol=1e-5, atol=1e-6)


def test_a_loss_scale_and_clipping_and_fused_do_not_go_together():
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match="fused to false"):
        train(partial(torch.optim.AdamW, lr=RATE, fused=True), 1.0, plugins=[half])
