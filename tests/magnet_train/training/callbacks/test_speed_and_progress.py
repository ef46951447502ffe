"""Operations of a step against torch's own count, and how durations are told."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from magnet_train.models import MagnetTransformer
from magnet_train.text import ClassLabels
from magnet_train.tokens import CodecInfo
from magnet_train.training.callbacks import ThroughputMonitor
from magnet_train.training.callbacks.progress import StepProgressBar, spell_time
from magnet_train.training.module import MagnetModule

CARD, FRAMES, CLIPS = 256, 160, 6


def batches(steps: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        [
            {
                "tokens": torch.randint(CARD, (CLIPS, 4, FRAMES), generator=generator),
                "valid": torch.arange(FRAMES) < torch.tensor([[160]] * 5 + [[90]]),
                "noise": torch.rand(CLIPS, 2 + FRAMES, generator=generator),
                "text": ["a", "b", "", "a", "b", "a"],
                "key": list("abcdef"),
                "slot": torch.arange(CLIPS) + CLIPS * step,
            }
            for step in range(steps)
        ],
        batch_size=None,
    )  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("context", "sampling", "frozen", "most"),
    # With frozen layers the gradient of the heads, which train, is left out; at these sizes it counts.
    # Torch counts the keys of a restricted frame as they are computed, block by block; the model only those it needs.
    [(-1, "stratified", False, 1.02), (5, "stratified", False, 1.12), (-1, "reference", True, 1.08)],
)
def test_operations_of_real_steps_are_those_that_torch_counts(context, sampling, frozen, most, tmp_path):
    """Two steps of three accumulated parts; in the kernel whose products torch counts on a CPU."""
    torch.manual_seed(0)
    module = MagnetModule(
        codec=CodecInfo("tiny", "0" * 64, 8000, 1, 50.0, n_q=4, card=CARD),
        lm=partial(MagnetTransformer, dim=64, num_heads=2, num_layers=2, subcodes_context=context),
        text=ClassLabels(["a", "b"], dim=8),
        segment_duration=FRAMES / 50,
        stage_sampling=sampling,
    )
    if frozen:
        module.lm.layers.requires_grad_(False)
    monitor = ThroughputMonitor(peak_tflops=1.0)
    trainer = pl.Trainer(
        max_steps=2,
        log_every_n_steps=2,
        accumulate_grad_batches=3,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.fit(module, batches(6))
    seconds = 2 / float(trainer.logged_metrics["speed/steps_per_second"])
    told = float(trainer.logged_metrics["speed/mfu"]) * seconds * 1e12
    assert 0.98 * told < counter.get_total_flops() < most * told


def test_the_last_line_of_a_log_has_the_loss_of_the_validation_at_the_end(tmp_path, capsys):
    module = MagnetModule(
        codec=CodecInfo("test", "0" * 64, 16_000, 1, 50.0, 4, CARD),
        lm=lambda n_q, card, text_dim: MagnetTransformer(
            n_q, card, text_dim, dim=64, num_heads=4, num_layers=1
        ),
        text=ClassLabels(["a", "b"], dim=16),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        segment_duration=FRAMES / 50,
        warmup_steps=1,
    )
    trainer = pl.Trainer(
        max_steps=4,
        val_check_interval=2,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[StepProgressBar(line_seconds=0)],
    )
    trainer.fit(module, batches(4), batches(1))
    steps = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split(" \u00b7 ")[0] for line in steps] == [f"step {step}/4" for step in (1, 2, 3, 4)]
    assert f"val loss {float(trainer.callback_metrics['val/loss']):.3f}" in steps[-1]
    assert steps[-1].split(" \u00b7 ")[2] != steps[-2].split(" \u00b7 ")[2]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (4800, "1 h 20 min"), (183600, "2 d 3 h")],
)
def test_durations(seconds, words):
    assert spell_time(seconds) == words
