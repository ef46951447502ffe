"""Data position of a run: one number that is the same for every rank and any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from datamodules.sampling.order import ORDER_VERSION
from magnet_train.errors import UserError


class DataPosition(Callback):
    """Count the slots that optimizer steps have consumed, and resume at the next one.

    Loader state cannot be used: Lightning and the workers prefetch, and only rank 0's state is saved.
    """

    def __init__(self) -> None:
        self.slots = 0
        self._pending = 0  # slots of accumulated batches before their optimizer step
        self._last_step = 0
        self._restored: dict[str, Any] | None = None
        self._identity: dict[str, int | str] = {}
        self._checkpoint = ""  # that the run resumes from, for errors
        self._data: Any = None  # a `SlotDataModule`

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the data of an earlier fit."""
        self._data = None

    def state_dict(self) -> dict[str, Any]:
        """Return only primitives, so that the checkpoint loads with `weights_only=True`."""
        return {"slots": self.slots, "order_version": ORDER_VERSION, **self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the data is known; sharding strategies restore only after `on_fit_start`."""
        self._restored = dict(state_dict)
        if self._data is not None:
            self._restore()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass the position to the data before Lightning builds its loader; raises as `require_same_order` does."""
        self._data = _data(trainer)
        self._identity = self._data.identity()
        self._checkpoint = f"the checkpoint {trainer.ckpt_path}"
        self._pending = 0
        self._restore()

    def _restore(self) -> None:
        if self._restored is not None:
            require_same_order(self._restored, self._identity, self._checkpoint)
            self.slots = int(self._restored["slots"])
            self._restored = None
        self._data.start_at(self.slots)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Align gradient accumulation, and refuse a checkpoint that would repeat data.

        Raises:
            UserError: The checkpoint has made steps but holds no position.
        """
        self._last_step = trainer.global_step
        if trainer.global_step and not self.slots:
            raise UserError(
                f"{self._checkpoint} has no data position (it was saved without the callback datamodules.DataPosition); "
                "start a new run from its weights with --init_from."
            )
        # Lightning steps when its count of batches is a multiple of the accumulation. After a resume with another
        # accumulation, or in the middle of one, the first step would come early and use fewer clips.
        counted = trainer.fit_loop.epoch_loop.batch_progress.current
        counted.increment_by(-(counted.ready % trainer.accumulate_grad_batches))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch after its optimizer step."""
        data = _data(trainer)
        self._pending += data.batch_size * trainer.world_size
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.slots += self._pending
            self._pending = 0
            data.start_at(self.slots)  # for the next Lightning epoch, if there is one


def require_same_order(position: Mapping[str, Any], identity: Mapping[str, int | str], where: str) -> None:
    """Require data of this `identity()` to give each slot the same clip as when `DataPosition` saved its state.

    `where` names the file that holds the state.

    Raises:
        UserError: Another seed, other clips or another order; names both values.
    """
    for name, now in {"order_version": ORDER_VERSION, **identity}.items():
        then = position.get(name)
        if then != now:
            same = "version of magnet-train" if name == "order_version" else "data and seed"
            raise UserError(
                f"{where} was trained with {name} {then} and this run has {now}; resume with the same {same}, "
                "or start a new run from its weights with --init_from."
            )


def _data(trainer: pl.Trainer) -> Any:
    data = getattr(trainer, "datamodule", None)
    if not hasattr(data, "start_at"):
        raise UserError(
            "the callback DataPosition needs data of class datamodules.TokenDataModule or StreamingDataModule; "
            "set `data`."
        )
    return data
