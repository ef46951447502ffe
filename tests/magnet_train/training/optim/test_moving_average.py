"""The average is what its formula says, and is what is validated, saved and loaded."""

from __future__ import annotations

import signal
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from magnet_train.checkpoints.load import read_model
from magnet_train.training.optim import MovingAverage

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


HOOKS = ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")


def watch(seen: dict[str, torch.Tensor], who: str, stage: str) -> dict[str, Any]:
    """Return hooks of a stage that note the weights which they see, for a class that is made of them."""

    def hook(name: str) -> Any:
        def note(self: Any, *arguments: Any, **_: Any) -> None:
            module = self if isinstance(self, pl.LightningModule) else arguments[1]
            seen[f"{who}.{name}"] = module.get_parameter(NAME).detach().clone()

        return note

    return {f"on_{stage}_{name}": hook(f"on_{stage}_{name}") for name in HOOKS}


def watcher(seen: dict[str, torch.Tensor], who: str, stage: str = "validation") -> pl.Callback:
    return type(who, (pl.Callback,), watch(seen, who, stage))()


def watched(build: Any, seen: dict[str, torch.Tensor], stage: str = "validation") -> pl.LightningModule:
    module = build()
    module.__class__ = type("Watched", (type(module),), watch(seen, "module", stage))
    return module


VALIDATE_AT_2 = {"val_check_interval": 2, "num_sanity_val_steps": 0}


def test_every_hook_of_a_validation_sees_the_average(build, train):
    """Those of the module and of callbacks before and after it in the list, `on_validation_end` included."""
    seen: dict[str, torch.Tensor] = {}
    record, module = Record(), watched(build, seen)
    callbacks = (watcher(seen, "before"), record, MovingAverage(0.9, 1), watcher(seen, "after"))
    train(module, 2, callbacks=callbacks, **VALIDATE_AT_2)
    average = expected(record.raw, 0.9)
    assert len(seen) == 3 * len(HOOKS)
    for hook, weights in seen.items():
        torch.testing.assert_close(weights, average, msg=hook)
    assert torch.equal(module.get_parameter(NAME), record.raw[-1])


def test_every_hook_of_training_sees_the_raw_weights(build, train):
    """Also right after a validation, and in a callback before it in the list."""
    started: list[torch.Tensor] = []

    class Before(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
            started.append(module.get_parameter(NAME).detach().clone())

    record = Record()
    train(build(), 4, callbacks=(Before(), record, MovingAverage(0.9, 1)), **VALIDATE_AT_2)
    assert all(torch.equal(a, b) for a, b in zip(started[1:], record.raw[:3], strict=True))


class SaveAt(pl.Callback):
    """Saves in one hook of a validation."""

    def __init__(self, hook: str, path: Any) -> None:
        setattr(self, hook, lambda trainer, *_, **__: trainer.save_checkpoint(path))


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_validation_end"])
def test_a_checkpoint_of_the_middle_of_a_validation_holds_both(build, train, tmp_path, hook):
    record, path = Record(), tmp_path / "c.ckpt"
    module = build()
    callbacks = (record, MovingAverage(0.9, 1), SaveAt(hook, path))
    train(module, 2, callbacks=callbacks, **VALIDATE_AT_2)
    checkpoint = torch.load(path, weights_only=True)
    torch.testing.assert_close(checkpoint["state_dict"][NAME], expected(record.raw, 0.9))
    assert torch.equal(checkpoint["current_model_state"][NAME], record.raw[-1])
    assert torch.equal(module.get_parameter(NAME), record.raw[-1])


@pytest.mark.parametrize(
    ("hook", "kind"),
    [
        ("on_validation_start", RuntimeError),
        ("on_validation_batch_end", RuntimeError),
        ("on_validation_batch_end", KeyboardInterrupt),
        ("on_validation_end", RuntimeError),
    ],
)
def test_a_stop_in_a_validation_leaves_the_raw_weights(build, train, hook, kind):
    def stop(*_: Any, **__: Any) -> None:
        raise kind("stopped")

    record, module = Record(), build()
    stopper = type("Stopper", (pl.Callback,), {hook: stop})()
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((kind, SystemExit)):  # Lightning leaves that way after Ctrl-C
            train(module, 4, callbacks=(record, MovingAverage(0.9, 1), stopper), **VALIDATE_AT_2)
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert torch.equal(module.get_parameter(NAME), record.raw[1])


def silent_trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(accelerator="cpu", callbacks=[*callbacks], **dict.fromkeys(quiet, False), **options)


@pytest.mark.parametrize(
    ("stage", "stopped"), [("validation", False), ("test", False), ("predict", False), ("test", True)]
)
def test_a_trainer_that_has_trained_measures_its_average(build, loader, stage, stopped):
    """And the module has the raw weights before and after."""
    seen: dict[str, torch.Tensor] = {}
    record, module = Record(), watched(build, seen, stage)
    callbacks = [MovingAverage(0.9, 1), record, watcher(seen, "after", stage)]
    few = dict.fromkeys(("limit_val_batches", "limit_test_batches", "limit_predict_batches"), 1)
    trainer = silent_trainer(*callbacks, max_steps=3, **few)
    trainer.fit(module, loader)
    run = {"validation": trainer.validate, "test": trainer.test, "predict": trainer.predict}[stage]
    seen.clear()
    if stopped:

        def stop(*_: Any, **__: Any) -> None:
            raise RuntimeError("stopped")

        trainer.callbacks.append(type("Stopper", (pl.Callback,), {f"on_{stage}_epoch_end": stop})())
        with pytest.raises(RuntimeError, match="stopped"):
            run(module, loader)
    else:
        run(module, loader)
    assert seen
    for hook, weights in seen.items():
        torch.testing.assert_close(weights, expected(record.raw, 0.9), msg=hook)
    assert torch.equal(module.get_parameter(NAME), record.raw[-1])


def test_a_checkpoint_that_is_measured_is_not_replaced_by_the_trainers_own_average(build, loader, tmp_path):
    module, other = build(), build()
    with torch.no_grad():
        other.get_parameter(NAME).fill_(0.5)
    path = tmp_path / "other.ckpt"
    silent_trainer(MovingAverage(0.9, 1), SaveAt("on_train_start", path), max_steps=1).fit(other, loader)
    record = Record()
    trainer = silent_trainer(MovingAverage(0.9, 1), record, max_steps=3, limit_val_batches=1)
    trainer.fit(module, loader)
    trainer.validate(module, loader, ckpt_path=path, weights_only=True)
    assert (record.validated[-1] == 0.5).all()


def test_a_sanity_check_and_a_second_fit(build, loader):
    """The check before the second fit sees the average, which then goes on; training begins with raw weights."""
    record, module, average = Record(), build(), MovingAverage(0.9, 1)
    trainer = silent_trainer(average, record, max_steps=2, num_sanity_val_steps=1, val_check_interval=1.0)
    trainer.fit(module, loader, loader)
    record.validated.clear()
    trainer.fit_loop.epoch_loop.max_steps = 3
    trainer.fit(module, loader, loader)
    torch.testing.assert_close(record.validated[0], expected(record.raw[:2], 0.9))
    assert average.updates == 3
    assert torch.equal(module.get_parameter(NAME), record.raw[-1])
