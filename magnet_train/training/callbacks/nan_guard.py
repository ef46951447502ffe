"""Abort on a NaN or infinite loss before the optimizer step, and save the batch that caused it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from magnet_train.checkpoints.bundle import RAW_WEIGHTS
from magnet_train.errors import AgreedError, UserError
from magnet_train.storage.atomic_io import atomic_write
from magnet_train.training.module import MagnetModule
from magnet_train.training.parallel import local_part

FOLDER = "non_finite"
_DECAY = 0.98  # of the running mean, per optimizer step


class _PendingLoss(NamedTuple):
    """A batch, and its loss on the way to the CPU."""

    batch: Mapping[str, Any]
    values: Tensor  # float [3]: ranks with a non-finite loss, sum of losses over ranks, 1 if this rank's is finite
    copied: torch.cuda.Event | None  # None if it is on the CPU already


class NonFiniteGuard(Callback):
    """Stop all ranks before the optimizer step when the loss of one is NaN or infinite.

    The batch is saved in `non_finite/` of the run's folder and the message names its slots and keys. Losses are copied to
    the CPU during the backward pass, so the step never waits for the GPU. A non-finite gradient of a finite loss shows in
    the next step's loss; no checkpoint is written in between, since checkpoints with non-finite weights are refused.

    Args:
        skip_above: Skip updates whose loss exceeds this many times its running mean, above 1; None skips none. Skipped
            updates are printed and counted as `train/skipped_updates`.
        max_skips: Stop after more than this many consecutive skipped updates.
    """

    def __init__(self, skip_above: float | None = None, max_skips: int = 10) -> None:
        self.skip_above = skip_above
        self.max_skips = max_skips
        self.skipped = 0
        self._consecutive = 0
        self._mean: float | None = None
        self._batch: Mapping[str, Any] = {}
        self._pending: list[_PendingLoss] = []  # of the batches since the last optimizer step

    def state_dict(self) -> dict[str, Any]:
        """Return the state that decides which later updates are skipped."""
        return {"skipped": self.skipped, "in_a_row": self._consecutive, "mean_nats": self._mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self._consecutive = state_dict["skipped"], state_dict["in_a_row"]
        self._mean = state_dict["mean_nats"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a `skip_above` of 1 or less, or with a precision that scales the loss."""
        self._pending = []
        if self.skip_above is None:
            return
        if self.skip_above <= 1:
            raise UserError(f"NonFiniteGuard has skip_above {self.skip_above}; give a number above 1.")
        if str(trainer.precision).startswith("16"):
            raise UserError(
                f"NonFiniteGuard's skip_above does not work at trainer.precision {trainer.precision}; use bf16-mixed or "
                "32-true."
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Sum the losses over ranks, and copy them to the CPU during the backward pass."""
        loss = loss.detach().float()
        finite = loss.isfinite()
        everywhere = torch.stack([(~finite).float(), loss])
        if trainer.world_size > 1:
            dist.all_reduce(everywhere)  # on a GPU only enqueued
        values, copied = torch.cat([everywhere, finite.float()[None]]), None
        if values.is_cuda:
            values = torch.empty(3, pin_memory=True).copy_(values, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()  # before the backward pass, which is enqueued after this
        self._pending.append(_PendingLoss(self._batch, values, copied))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Abort if a loss is not finite, or skip an update with a loss far above the running mean."""
        bad_ranks, total, own_bad = 0.0, 0.0, []
        for batch, values, copied in self._pending:
            if copied is not None:
                copied.synchronize()
            bad, loss, finite = values.tolist()
            bad_ranks, total = bad_ranks + bad, total + loss
            if not finite:
                own_bad.append(batch)
        self._pending = []
        if bad_ranks:
            self._abort(trainer, own_bad)
        if self.skip_above is not None:
            # Lightning has divided the loss of each part by the number of parts.
            scale = float(cast(MagnetModule, pl_module).mean_scale) * trainer.accumulate_grad_batches
            self._skip_spike(trainer, pl_module, optimizer, scale * total, self.skip_above)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save non-finite weights; the previous checkpoints stay."""
        weights = [*checkpoint.get("state_dict", {}).values(), *checkpoint.get(RAW_WEIGHTS, {}).values()]
        finite = all(
            bool(local_part(weight).isfinite().all())
            for weight in weights
            if isinstance(weight, Tensor) and weight.is_floating_point()
        )
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise AgreedError(
                f"the weights are not finite after step {trainer.global_step}, so they were not saved; resume from "
                "the previous checkpoint with a smaller learning rate."
            )

    def _abort(self, trainer: pl.Trainer, batches: list[Mapping[str, Any]]) -> None:
        rank, step = trainer.global_rank, trainer.global_step
        folder = Path(trainer.default_root_dir) / FOLDER
        described = []
        for number, batch in enumerate(batches):
            slots = [int(slot) for slot in batch.get("slot", [])]
            described.append(f"rank {rank}, slots {slots}, keys {', '.join(batch.get('key', []))}")
            try:
                _write(batch, folder / f"step_{step:07d}_rank_{rank}_{number}.safetensors")
            except UserError as error:  # not raised: the other ranks wait for the descriptions
                described.append(f"which could not be saved: {error}")
        if trainer.world_size > 1:
            gathered: list[list[str]] = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, described)
            described = [line for lines in gathered for line in lines]
        raise AgreedError(
            f"the loss is not finite at step {step} ({'; '.join(described)}); the weights are unchanged, the batch is in "
            f"{folder}: check these clips, or resume with a smaller learning rate."
        )

    def _skip_spike(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: Optimizer,
        loss: float,
        skip_above: float,
    ) -> None:
        mean = loss if self._mean is None else self._mean
        if loss > skip_above * mean:
            self.skipped += 1
            self._consecutive += 1
            if self._consecutive > self.max_skips:
                raise AgreedError(
                    f"more than {self.max_skips} consecutive updates had a loss above {skip_above:g} times the mean "
                    f"({mean:.3g}); resume from the previous checkpoint with a smaller learning rate."
                )
            optimizer.zero_grad(set_to_none=True)  # parameters without gradients are not updated
            rank_zero_info(
                f"skipped the update of step {trainer.global_step}: loss {loss:.3g}, mean {mean:.3g}"
            )
        else:
            self._consecutive = 0
            self._mean = _DECAY * mean + (1 - _DECAY) * loss
        pl_module.log("train/skipped_updates", float(self.skipped))


def _write(batch: Mapping[str, Any], target: Path) -> None:
    """Save the tensors of the batch, and its strings as JSON in the metadata."""
    tensors = {key: value.cpu().contiguous() for key, value in batch.items() if isinstance(value, Tensor)}
    strings = {key: json.dumps(value) for key, value in batch.items() if isinstance(value, list)}
    with atomic_write(target) as file:
        file.write(save(tensors, metadata=strings))
