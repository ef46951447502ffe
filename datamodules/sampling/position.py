"""Keep a run's place in its data: one number, the same for every rank and any number of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from datamodules.sampling.order import ORDER_VERSION
from magnet_train.errors import UserError


class _SlotData(Protocol):
    """The part of the data that the position needs."""

    batch_size: int

    def identity(self) -> dict[str, int | str]: ...

    def start_at(self, slot: int) -> None: ...


class DataPosition(Callback):
    """Count the slots that optimizer steps have used up, and resume at the very next one.

    Loader state is of no use here: Lightning and the workers fetch ahead, and only rank 0's state is saved. A
    resume with another seed, other clips or another order is refused, because it could not continue the same
    run.
    """

    def __init__(self) -> None:
        self.slots = 0
        self._pending = 0  # batches of an accumulation whose step is still to come
        self._last_step = 0
        self._restored: dict[str, Any] | None = None
        self._identity: dict[str, int | str] = {}
        self._data: _SlotData | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the data of an earlier fit."""
        self._data = None

    def state_dict(self) -> dict[str, Any]:
        """Return primitives only, so that the checkpoint loads with `weights_only=True`."""
        return {"slots": self.slots, "order_version": ORDER_VERSION, **self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the data it has to fit is known: strategies that shard restore after that."""
        self._restored = dict(state_dict)
        if self._data is not None:
            self._take_up(self._data)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand the position to the data before Lightning builds its loader.

        Raises:
            UserError: The checkpoint is from another seed, other clips or another order; shows both.
        """
        self._data = _data(trainer)
        self._identity = self._data.identity()
        self._pending = 0
        self._take_up(self._data)

    def _take_up(self, data: _SlotData) -> None:
        if self._restored is not None:
            require_same_order(self._restored, self._identity)
            self.slots = int(self._restored["slots"])
            self._restored = None
        data.start_at(self.slots)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with a whole step, and refuse to repeat data in silence.

        Raises:
            UserError: The checkpoint has made steps but says nothing of its position.
        """
        self._last_step = trainer.global_step
        if trainer.global_step and not self.slots:
            raise UserError(
                "the checkpoint does not say where in the data it stopped (it was saved without the callback "
                "datamodules.DataPosition); start a new run from its weights."
            )
        # Lightning steps where its count of batches is a multiple of the accumulation. After a resume with another
        # accumulation, or from the middle of one, the first step would come early and take fewer clips.
        counted = trainer.fit_loop.epoch_loop.batch_progress.current
        counted.increment_by(-(counted.ready % trainer.accumulate_grad_batches))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a batch once the optimizer step it belongs to is done."""
        data = _data(trainer)
        self._pending += data.batch_size * trainer.world_size
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.slots += self._pending
            self._pending = 0
            data.start_at(self.slots)  # where the next epoch of Lightning's, if there is one, begins


def require_same_order(position: Mapping[str, Any], identity: Mapping[str, int | str]) -> None:
    """See that the data would give each slot the clip that it gave when the position was saved.

    Args:
        position: What `DataPosition` saved.
        identity: Of the data of now.

    Raises:
        UserError: Another seed, other clips or another order; shows both.
    """
    for name, now in {"order_version": ORDER_VERSION, **identity}.items():
        then = position.get(name)
        if then != now:
            raise UserError(
                f"the checkpoint was trained with {name} {then} and this run has {now}; resume with "
                "the same data, or start a new run from its weights."
            )


def _data(trainer: pl.Trainer) -> _SlotData:
    data = getattr(trainer, "datamodule", None)
    if not hasattr(data, "start_at"):
        raise UserError(
            "the callback DataPosition needs data of class datamodules.TokenDataModule (or StreamingDataModule); "
            "set `data`."
        )
    return cast(_SlotData, data)
