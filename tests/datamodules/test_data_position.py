"""A run that is cut anywhere continues with the very next slot, under a real Lightning trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.batches import TokenBatch
from datamodules.sampling.position import DataPosition
from datamodules.token_datamodule import TokenDataModule
from magnet_train.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Recorder(pl.LightningModule):
    """Record the slots of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.slots: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
        self.slots.append(batch["slot"].tolist())
        return (self.weight - 1).square().sum()

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.validated += batch["slot"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path | dict[str, float],
    root: Path,
    steps: int,
    resume: Path | None = None,
    data: Any = None,
    **options: Any,
) -> Recorder:
    """Train to step `steps`, with a checkpoint at every step in `root`."""
    model = Recorder()
    checkpoint = ModelCheckpoint(root, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        **{
            "max_steps": steps,
            "max_epochs": -1,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "callbacks": [checkpoint, DataPosition()],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "limit_val_batches": 0,
            **options,
        }
    )
    made = TokenDataModule(
        folder,
        **{"segment_duration": 0.5, "batch_size": 4, "num_workers": 0, "val_fraction": 0.1, **(data or {})},
    )
    trainer.fit(model, made, ckpt_path=resume, weights_only=True)
    return model


def rows(model: Recorder) -> list[int]:
    return [slot for batch in model.slots for slot in batch]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 3},  # Lightning begins an epoch of its own every 3 batches
        {"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None},
    ],
    ids=["plain", "accumulation", "short-epochs", "validation"],
)
def test_resume_continues_where_it_was_cut(
    make_shards: Any, tmp_path: Path, options: dict[str, Any], workers: int
) -> None:
    """8 training clips of 10 and batches of 4: epochs end on every other batch."""
    folder = make_shards(clips=10)
    whole = rows(fit(folder, tmp_path / "a", 9, data={"num_workers": workers}, **options))
    per_step = 4 * options.get("accumulate_grad_batches", 1)
    assert whole == list(range(9 * per_step))
    resumed = rows(
        fit(
            folder,
            tmp_path / "b",
            9,
            tmp_path / "a" / "step=5.ckpt",
            data={"num_workers": workers},
            **options,
        )
    )
    assert resumed == whole[5 * per_step :]


def test_the_batch_may_change(make_shards: Any, tmp_path: Path) -> None:
    folder = make_shards(clips=10)
    fit(folder, tmp_path / "a", 3)
    resumed = fit(
        folder, tmp_path / "b", 5, tmp_path / "a" / "step=3.ckpt", data={"batch_size": 6, "num_workers": 2}
    )
    assert rows(resumed) == list(range(12, 24))


@pytest.mark.parametrize("steps", [3, 4])
def test_accumulation_may_change(make_shards: Any, tmp_path: Path, steps: int) -> None:
    """Three or four batches were seen before: a step of two batches takes two all the same, from the first on."""
    folder = make_shards(clips=10)
    fit(folder, tmp_path / "a", steps)
    resume = tmp_path / "a" / f"step={steps}.ckpt"
    resumed = fit(
        folder, tmp_path / "b", steps + 3, resume, data={"batch_size": 2}, accumulate_grad_batches=2
    )
    assert rows(resumed) == list(range(4 * steps, 4 * (steps + 3)))


def test_the_state_is_one_number_and_loads_without_pickle(make_shards: Any, tmp_path: Path) -> None:
    fit(make_shards(clips=10), tmp_path / "a", 3)
    checkpoint = torch.load(tmp_path / "a" / "step=3.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["DataPosition"]
    assert state["slots"] == 12
    assert state["clips"] == 8
    assert set(state) == {"slots", "seed", "clips", "fingerprint", "weights", "order_version"}
    assert all(type(value) in (int, str) for value in state.values())


def test_validation_covers_the_held_out_clips(make_shards: Any, tmp_path: Path) -> None:
    model = fit(make_shards(clips=40), tmp_path / "a", 2, limit_val_batches=1.0, num_sanity_val_steps=0,
                val_check_interval=2, check_val_every_n_epoch=None, data={"val_fraction": 0.2})  # fmt: skip
    seen = [slot for slot in model.validated if slot >= 0]
    assert seen == list(range(len(seen)))
    assert len(model.validated) % 4 == 0


def test_another_seed_is_refused(make_shards: Any, tmp_path: Path) -> None:
    folder = make_shards(clips=10)
    fit(folder, tmp_path / "a", 1)
    with pytest.raises(UserError, match="seed 0 and this run has 1; resume with the same data and seed, or"):
        fit(folder, tmp_path / "b", 2, tmp_path / "a" / "step=1.ckpt", data={"seed": 1})


def test_other_clips_are_refused(make_shards: Any, tmp_path: Path) -> None:
    fit(make_shards(clips=10), tmp_path / "a", 1)
    resume = tmp_path / "a" / "step=1.ckpt"
    with pytest.raises(UserError, match="clips 8 and this run has 15"):
        fit(make_shards(clips=20, name="more"), tmp_path / "b", 2, resume)
    with pytest.raises(UserError, match=r"fingerprint .* and this run has"):
        fit(make_shards(clips=10, frames=70, name="other"), tmp_path / "b", 2, resume)


def test_another_mixture_is_refused(make_shards: Any, tmp_path: Path) -> None:
    first, second = str(make_shards(clips=10)), str(make_shards(clips=20, name="second"))
    model = fit({first: 3, second: 1}, tmp_path / "a", 2)
    resume = tmp_path / "a" / "step=1.ckpt"
    again = fit({second: 2, first: 6}, tmp_path / "same", 2, resume)  # the same in other words
    assert rows(again) == rows(model)[4:]
    with pytest.raises(UserError, match=r"weights 0\.[27]5\+0\.[27]5 and this run has 0\.5\+0\.5"):
        fit({first: 1, second: 1}, tmp_path / "b", 2, resume)
    with pytest.raises(UserError, match=r"clips \d+ and this run has \d+"):
        fit(first, tmp_path / "b", 2, resume)


def test_an_older_order_is_refused(make_shards: Any, tmp_path: Path) -> None:
    folder = make_shards(clips=10)
    fit(folder, tmp_path / "a", 1)
    path = tmp_path / "a" / "step=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["DataPosition"]["order_version"] = 1
    torch.save(checkpoint, path)
    remedy = (
        "resume with the same version of magnet-train, or start a new run from its weights with --init_from"
    )
    with pytest.raises(UserError, match=f"order_version 1 and this run has 2; {remedy}"):
        fit(folder, tmp_path / "b", 2, path)


def test_the_same_shards_elsewhere_are_the_same(make_shards: Any, tmp_path: Path) -> None:
    fit(make_shards(clips=10), tmp_path / "a", 1)
    moved = fit(make_shards(clips=10, name="elsewhere"), tmp_path / "b", 2, tmp_path / "a" / "step=1.ckpt")
    assert rows(moved) == [4, 5, 6, 7]


def test_training_without_the_callback_is_refused(make_shards: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks the callback datamodules\.DataPosition"):
        fit(make_shards(clips=10), tmp_path, 1, callbacks=[], enable_checkpointing=False)


def test_a_checkpoint_without_position_is_refused(make_shards: Any, tmp_path: Path) -> None:
    folder = make_shards(clips=10)
    fit(folder, tmp_path / "a", 1)
    path = tmp_path / "a" / "step=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["DataPosition"]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="has no data position"):
        fit(folder, tmp_path / "b", 2, path)


def test_the_callback_without_its_data_is_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[DataPosition()], default_root_dir=tmp_path, max_steps=1
    )
    with pytest.raises(UserError, match=r"datamodules\.TokenDataModule"):
        trainer.fit(Recorder(), torch.utils.data.DataLoader([1]))


def test_the_package_gives_both_by_name() -> None:
    import datamodules

    assert datamodules.DataPosition is DataPosition
    assert datamodules.TokenDataModule is TokenDataModule
    with pytest.raises(AttributeError, match="Nothing"):
        datamodules.Nothing  # noqa: B018
