"""One training run in processes of its own, for tests that kill it: `python training_run.py '{"shards": ...}'`.

Every rank appends a line to `LOG.rank` for each step: slots, keys and a hash of the tokens and masks that it saw.
At the end rank 0 writes a hash of the weights and the losses.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import DataPosition, TokenDataModule
from magnet_train.models import MagnetTransformer
from magnet_train.text import NoText
from magnet_train.training.module import MagnetModule


class Recorder(pl.Callback):
    """Record the clips of each step."""

    def __init__(self, log: str) -> None:
        self.path = log
        self.losses: dict[int, float] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MagnetModule)
        masks = pl_module.draw_mask(batch["noise"])
        rows = [
            [int(slot), key, hashlib.sha1(tokens.numpy().tobytes() + mask.numpy().tobytes()).hexdigest()]
            for slot, key, tokens, mask in zip(
                batch["slot"], batch["key"], batch["tokens"], masks, strict=True
            )
        ]
        with open(f"{self.path}.{trainer.global_rank}", "a") as file:
            file.write(json.dumps({"step": trainer.global_step, "rows": rows}) + "\n")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.losses[trainer.global_step] = float(trainer.callback_metrics["train/loss"])

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        with open(f"{self.path}.{trainer.global_rank}.validated", "a") as file:
            file.write(json.dumps(batch["key"]) + "\n")


def main() -> None:
    """Train as the one argument says."""
    options = json.loads(sys.argv[1])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    accumulate = options.get("accumulate", 1)
    pl.seed_everything(0, verbose=False)
    data = TokenDataModule(
        options["shards"],
        segment_duration=0.5,
        batch_size=8 // options["devices"] // accumulate,  # a step takes 8 clips
        num_workers=options["workers"],
        val_fraction=0.1,
        **options.get("data", {}),
    )
    model = MagnetModule(
        codec=data.codec,
        lm=lambda n_q, card, text_dim: MagnetTransformer(
            n_q, card, text_dim, dim=32, num_heads=2, num_layers=1
        ),
        text=NoText(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        segment_duration=0.5,
        warmup_steps=2,
    )
    recorder = Recorder(options["log"])
    trainer = pl.Trainer(
        max_steps=options["steps"],
        max_epochs=-1,
        accelerator="cpu",
        devices=options["devices"],
        strategy="ddp" if options["devices"] > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1.0 if "validate_at" in options else 0,
        val_check_interval=options.get("validate_at"),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accumulate_grad_batches=accumulate,
        callbacks=[
            recorder,
            DataPosition(),
            ModelCheckpoint(
                options["checkpoints"], filename="{step:04d}", every_n_train_steps=2, save_top_k=-1
            ),
        ],
    )
    trainer.fit(model, data, ckpt_path=options.get("resume"), weights_only=True)
    if trainer.is_global_zero:
        weights = hashlib.sha1()
        for value in model.state_dict().values():
            weights.update(value.numpy().tobytes())
        result = {"weights": weights.hexdigest(), "losses": recorder.losses}
        Path(options["log"] + ".result").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
