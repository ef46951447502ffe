"""A tiny module and trainer whose every step is repeatable."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from magnet_train.decoding import DecodingConfig
from magnet_train.models import MagnetTransformer
from magnet_train.text import ClassLabels
from magnet_train.tokens import CodecInfo
from magnet_train.training.module import MagnetModule

CODEC = CodecInfo("tiny", "0" * 64, 8000, 1, 50.0, n_q=2, card=16)
FRAMES = 24


def batch(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    return {
        "tokens": torch.randint(16, (4, 2, FRAMES), generator=generator),
        "valid": torch.ones(4, FRAMES, dtype=torch.bool),
        "noise": torch.rand(4, 2 + FRAMES, generator=generator),
        "text": ["a", "b", "a", ""],
        "key": list("abcd"),
        "slot": torch.arange(4) + 4 * number,
    }


@pytest.fixture
def build() -> Callable[..., MagnetModule]:
    """Return a function that makes the same tiny module each time."""

    def module(**changes: Any) -> MagnetModule:
        torch.manual_seed(0)
        options = {
            "codec": CODEC,
            "lm": partial(MagnetTransformer, dim=16, num_heads=2, num_layers=1),
            "text": ClassLabels(["a", "b"], dim=8),
            "optimizer": partial(torch.optim.AdamW, lr=1e-2),
            "segment_duration": FRAMES / 50,
            "warmup_steps": 2,
            "decoding": DecodingConfig(decoding_steps=(3, 2)),
        }
        return MagnetModule(**(options | changes))

    return module


class Keep(pl.Callback):
    """Keep the learning rates that steps were made with, and save after step `save_at`."""

    def __init__(self, save_at: int = 0, path: Path | None = None) -> None:
        self.rates: list[float] = []
        self.save_at, self.path = save_at, path
        self.saved = False

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any
    ) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.path is not None and trainer.global_step == self.save_at and not self.saved:
            self.saved = True
            trainer.save_checkpoint(self.path)


@pytest.fixture
def train() -> Callable[..., Keep]:
    """Return a function that trains a module on batches `first`, `first + 1`, ..."""

    def run(
        module: MagnetModule,
        steps: int,
        *,
        first: int = 0,
        parts: int = 1,
        save_at: int = 0,
        save: Path | None = None,
        resume: Path | None = None,
        callbacks: tuple[pl.Callback, ...] = (),
        **options: Any,
    ) -> Keep:
        keep = Keep(save_at, save)
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            accumulate_grad_batches=parts,
            callbacks=[*callbacks, keep],
            **options,
        )
        loader = DataLoader([batch(number) for number in range(first, 100)], batch_size=None)  # type: ignore
        held_out = DataLoader([batch(1000)], batch_size=None) if options else None  # type: ignore
        trainer.fit(module, loader, held_out, ckpt_path=resume, weights_only=True)
        return keep

    return run


@pytest.fixture
def loader() -> DataLoader[Any]:
    """Batches for whoever builds a trainer of their own."""
    return DataLoader([batch(number) for number in range(100)], batch_size=None)  # type: ignore[arg-type]
