"""The average is what its formula says, and is what is validated, saved and loaded."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from magnet_train.checkpoints.load import read_model
from magnet_train.optim import MovingAverage

NAME = "lm.heads"


class Record(pl.Callback):
    """Keeps the raw weights after each optimizer step, and those that validation sees."""

    def __init__(self) -> None:
        self.raw: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.raw.append(module.get_parameter(NAME).detach().clone())

    def on_validation_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.validated.append(module.get_parameter(NAME).detach().clone())


def expected(raw: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Mean of the weights, each older one worth `decay` of the next."""
    shares = [decay ** (len(raw) - 1 - i) for i in range(len(raw))]
    return sum(share * weights for share, weights in zip(shares, raw, strict=True)) / sum(shares)


def test_it_is_the_weighted_mean_of_every_nth_step(build, train, tmp_path):
    record, path = Record(), tmp_path / "c.ckpt"
    module = build()
    train(module, 7, save_at=7, save=path, callbacks=(record, MovingAverage(0.9, 2)))
    checkpoint = torch.load(path, weights_only=True)
    average = expected([record.raw[i] for i in (1, 3, 5)], 0.9)
    torch.testing.assert_close(checkpoint["state_dict"][NAME], average)
    assert torch.equal(checkpoint["current_model_state"][NAME], record.raw[-1])
    assert torch.equal(module.get_parameter(NAME), record.raw[-1])
    assert torch.equal(read_model(path).weights[NAME], checkpoint["state_dict"][NAME])
    assert torch.equal(read_model(path, raw=True).weights[NAME], record.raw[-1])


def test_validation_sees_the_average_and_training_goes_on_from_the_raw_weights(build, train):
    record = Record()
    options = {"val_check_interval": 2, "num_sanity_val_steps": 0}
    module, plain = build(), build()
    train(module, 4, callbacks=(MovingAverage(0.9, 1), record), **options)
    torch.testing.assert_close(record.validated[0], expected(record.raw[:2], 0.9))
    torch.testing.assert_close(record.validated[1], expected(record.raw, 0.9))
    train(plain, 4)
    assert torch.equal(module.get_parameter(NAME), plain.get_parameter(NAME))


def test_before_its_first_update_it_stands_for_nothing(build, train, tmp_path):
    record, path = Record(), tmp_path / "c.ckpt"
    options = {"val_check_interval": 2, "num_sanity_val_steps": 0}
    train(build(), 3, save_at=3, save=path, callbacks=(MovingAverage(0.9, 10), record), **options)
    assert torch.equal(record.validated[0], record.raw[1])
    assert read_model(path).training["weights"] == "raw"


@pytest.mark.parametrize("first", [EMAWeightAveraging(decay=0.9), MovingAverage(0.9, 1)])
def test_it_goes_on_from_an_average_that_was_saved(first, build, train, tmp_path):
    """Also from one of Lightning's callback, whose checkpoints have the same keys."""
    path = tmp_path / "c.ckpt"
    train(build(), 3, save_at=3, save=path, callbacks=(first,))
    saved = torch.load(path, weights_only=True)
    again, average = build(), MovingAverage(0.9, 1)
    train(again, 3, first=3, resume=path, callbacks=(average,))  # no step left: as it was loaded
    assert torch.equal(again.get_parameter(NAME), saved["current_model_state"][NAME])
    assert average.updates == int(saved["averaging_state"]["n_averaged"]) == 3
