"""Stop before a loss that is no number reaches the weights, and keep the batch that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from magnet_train.errors import AgreedError, UserError
from magnet_train.storage.atomic_io import atomic_write
from magnet_train.training.module import MagnetModule

FOLDER = "non_finite"
_MEMORY = 0.98  # of the running mean, at each optimizer step


class NonFiniteGuard(Callback):
    """Stop all ranks before the update when the loss of one is NaN or infinite.

    The batch goes to `non_finite/` in the run's folder and the message names its slots and keys. The losses
    are read from the device while it computes gradients, so that a step waits for nothing. A gradient that is
    not finite under a finite loss shows in the next step's loss; nothing is saved in between, since each
    checkpoint's weights are looked through before they are written.

    Args:
        skip_above: Leave out updates whose loss is more than this many times its running mean; None leaves out
            none. Skipped updates are told and counted as `train/skipped_updates`.
        max_skips: Stop after this many skipped updates in a row.
    """

    def __init__(self, skip_above: float | None = None, max_skips: int = 10) -> None:
        self.skip_above = skip_above
        self.max_skips = max_skips
        self.skipped = 0
        self._in_a_row = 0
        self._mean: float | None = None
        self._batch: Mapping[str, Any] = {}
        self._seen: list[_Seen] = []  # batches since the last optimizer step

    def state_dict(self) -> dict[str, Any]:
        """Return what decides over later updates, so that a resumed run skips the same."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, "mean_nats": self._mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what an earlier part of the run has counted.

        The mean of checkpoints of before was divided by their number of accumulated parts; it starts again.
        """
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self._mean = state_dict.get("mean_nats")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: `skip_above` with scaled float16 losses or not above 1.
        """
        self._seen = []
        if self.skip_above is None:
            return
        if self.skip_above <= 1:
            raise UserError(f"NonFiniteGuard's skip_above is {self.skip_above} and has to be above 1.")
        if str(trainer.precision).startswith("16"):
            raise UserError("NonFiniteGuard's skip_above needs trainer.precision bf16-mixed or 32-true.")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch until its loss is known."""
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Share this rank's verdict with the others, and let it travel to the host beside the backward pass."""
        loss = loss.detach().float()
        finite = loss.isfinite()
        everywhere = torch.stack([(~finite).float(), loss])
        if trainer.world_size > 1:
            dist.all_reduce(everywhere)  # on a GPU this only joins the queue
        self._seen.append(_Seen(self._batch, torch.cat([everywhere, finite.float()[None]])))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the losses of this update.

        Raises:
            AgreedError: One of them is not finite, or too many updates in a row were left out.
        """
        seen, self._seen = self._seen, []
        numbers = [batch.numbers() for batch in seen]
        if any(bad for bad, _, _ in numbers):
            own = [batch for batch, (_, _, finite) in zip(seen, numbers, strict=True) if not finite]
            self._refuse(trainer, [batch.content for batch in own])
        if self.skip_above is not None:
            # Lightning has divided the loss of each part by the number of parts.
            scale = float(cast(MagnetModule, pl_module).mean_scale) * trainer.accumulate_grad_batches
            self._weigh(trainer, pl_module, optimizer, scale * sum(loss for _, loss, _ in numbers))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep weights that are not finite off the disk.

        Raises:
            AgreedError: Some are; the checkpoints before stand.
        """
        weights = [
            t for part in ("state_dict", "current_model_state") for t in _floats(checkpoint.get(part, {}))
        ]
        finite = bool(torch.stack([t.isfinite().all().cpu() for t in weights]).all()) if weights else True
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise AgreedError(
                f"the weights are not finite after step {trainer.global_step}, so they were not saved; resume from "
                "the checkpoint before with a smaller learning rate."
            )

    def _refuse(self, trainer: pl.Trainer, batches: list[Mapping[str, Any]]) -> None:
        rank, step = trainer.global_rank, trainer.global_step
        own = []
        for number, batch in enumerate(batches):
            target = (
                Path(trainer.default_root_dir) / FOLDER / f"step_{step:07d}_rank_{rank}_{number}.safetensors"
            )
            own.append(_describe(batch, rank))
            try:
                _write(batch, target)
            except UserError as error:  # the other ranks wait to hear which clips these are
                own.append(f"which could not be kept: {error}")
        if trainer.world_size > 1:
            gathered: list[list[str]] = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, own)
            own = [line for lines in gathered for line in lines]
        raise AgreedError(
            f"the loss is not finite at step {step} ({'; '.join(own)}); the weights are as they were before, the "
            f"batch is in {Path(trainer.default_root_dir) / FOLDER}: look at these clips, or resume with a "
            "smaller learning rate."
        )

    def _weigh(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer, loss: float
    ) -> None:
        """Leave this update out if its loss stands far above the others'."""
        mean = loss if self._mean is None else self._mean
        assert self.skip_above is not None
        if loss > self.skip_above * mean:
            self.skipped += 1
            self._in_a_row += 1
            if self._in_a_row > self.max_skips:
                raise AgreedError(
                    f"{self.max_skips} updates in a row had a loss above {self.skip_above:g} times the mean "
                    f"({mean:.3g}); resume from the checkpoint before with a smaller learning rate."
                )
            optimizer.zero_grad(set_to_none=True)  # parameters without gradients stay as they are
            rank_zero_info(
                f"skipped the update of step {trainer.global_step}: loss {loss:.3g}, mean {mean:.3g}"
            )
        else:
            self._in_a_row = 0
            self._mean = _MEMORY * mean + (1 - _MEMORY) * loss
        pl_module.log("train/skipped_updates", float(self.skipped))


class _Seen:
    """A batch, and its numbers on their way to the host: ranks with a bad loss, sum of losses, own is finite."""

    def __init__(self, content: Mapping[str, Any], numbers: Tensor) -> None:
        self.content = content
        self._numbers = numbers
        self._arrived: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()  # before the backward pass, which is queued after this

    def numbers(self) -> tuple[float, float, float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        bad, loss, finite = self._numbers.tolist()
        return bad, loss, finite


def _floats(weights: Mapping[str, Any]) -> list[Tensor]:
    """Return this rank's part of the floating-point weights."""
    tensors = [t for t in weights.values() if isinstance(t, Tensor) and t.is_floating_point()]
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


def _describe(batch: Mapping[str, Any], rank: int) -> str:
    slots = [int(slot) for slot in batch.get("slot", [])]
    return f"rank {rank}, slots {slots}, keys {', '.join(batch.get('key', []))}"


def _write(batch: Mapping[str, Any], target: Path) -> None:
    """Write one file with the batch's tensors; its strings are in the file's metadata, as JSON."""
    tensors = {key: value.cpu().contiguous() for key, value in batch.items() if isinstance(value, Tensor)}
    strings = {key: json.dumps(value) for key, value in batch.items() if isinstance(value, list)}
    with atomic_write(target) as file:
        file.write(save(tensors, metadata=strings))
