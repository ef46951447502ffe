"""Compare `fit` with a bare PyTorch loop that makes the same steps.

    python benchmarks/fit_overhead.py

Both train the same model on the same batches with the same optimizer, schedule, clipping and moving average.
`fit` is what a user runs: Lightning, our module, every callback that the command line adds, and logging to CSV; the loop
has none of these. They take turns in one process, a block of steps each, so that other load on the machine slows both
alike, and process CPU time is compared. Unless the losses are equal, there is no ratio.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from datamodules import TokenDataModule
from harness.loader_pipelines import make_shards
from harness.quickstart_world import (
    CONFIGS,
    RESULTS,
    command,
    config_words,
    hardware,
    option_words,
    write_json,
)
from magnet_train.masking import stratified_stages
from magnet_train.training.module import CONDITION, MagnetModule
from magnet_train.training.objective import masked_cross_entropy_sum, predict_masked

TARGET = 0.97
TOLERANCE = 1e-4  # nats; the two divide by the masked count at different places
LOG_EVERY = 10


class BareLoop:
    """Training in plain PyTorch; every tenth loss is kept.

    Args:
        module: The initial weights, which are copied, and the settings.
        batches: Iterator over the batches.
        decay: Of the moving average, updated after each step.
    """

    def __init__(self, module: MagnetModule, batches: Any, decay: float) -> None:
        self.lm, self.text = copy.deepcopy(module.lm), copy.deepcopy(module.text)
        self.settings, self.batches, self.decay = module, batches, decay
        self.parameters = [*self.lm.parameters(), *self.text.parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.schedule = module._build_schedule(self.optimizer)
        self.losses: list[float] = []
        self.step = 0

    def run(self, steps: int) -> None:
        """Train for `steps` steps."""
        for _ in range(steps):
            batch = next(self.batches)
            stages = stratified_stages(batch["slot"], self.settings.stage_weights).tolist()
            mask = self.settings.draw_mask(batch["noise"])
            hidden, text_mask = self.text(batch["text"])
            text_mask = text_mask & (batch["noise"][:, CONDITION] >= self.settings.cfg_dropout)[:, None]
            predictions = list(
                predict_masked(self.lm, batch["tokens"], mask, batch["valid"], stages, hidden, text_mask)
            )
            loss = sum(masked_cross_entropy_sum(p.logits, p.targets) for p in predictions)
            loss = loss / sum(len(p.targets) for p in predictions)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            weight = (1 - self.decay) / (1 - self.decay**self.step)  # as `MovingAverage` corrects its start
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, weight)
            if self.step % LOG_EVERY == 0:
                self.losses.append(loss.item())


class Turns(Callback):
    """After each block of steps of `fit`, run the same number in the bare loop, and time both.

    Args:
        block: Steps of a turn.
        result: JSON file to write at the end.
    """

    def __init__(self, block: int, result: str) -> None:
        self.block, self.result = block, Path(result)
        self.times: dict[str, list[float]] = {"fit": [], "bare": []}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set up the bare loop."""
        assert isinstance(pl_module, MagnetModule)
        ours: Any = trainer.datamodule  # type: ignore[attr-defined]
        data = TokenDataModule(
            str(ours.shards[0]),
            segment_duration=ours.segment_duration,
            batch_size=ours.batch_size,
            num_workers=0,
            seed=ours.seed,
        )
        data.setup("fit")
        self.bare = BareLoop(pl_module, iter(data.train_dataloader()), decay=0.99)
        self.since = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Let the bare loop take its turn at the end of a block."""
        if trainer.global_step % self.block:
            return
        now = time.process_time()
        self.times["fit"].append(now - self.since)
        self.bare.run(self.block)
        self.since = time.process_time()
        self.times["bare"].append(self.since - now)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the times, and the losses of the bare loop."""
        self.result.write_text(json.dumps({"times": self.times, "losses": self.bare.losses}))


def measure(work: Path, blocks: int, block: int) -> dict[str, Any]:
    """Run `fit` in turns with the bare loop."""
    shards = make_shards(work / "shards", clips=400, frames=100)
    result, run = work / "result.json", work / "run"
    callbacks: list[dict[str, Any]] = [
        {
            "class_path": "magnet_train.training.optim.MovingAverage",
            "init_args": {"decay": 0.99, "every_n_steps": 1},
        },
        {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
        {"class_path": "fit_overhead.Turns", "init_args": {"block": block, "result": str(result)}},
    ]
    steps = (blocks + 1) * block
    options = {
        "run": run,
        "data.shards": shards,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": 10 * steps,
        "trainer.log_every_n_steps": LOG_EVERY,
        "trainer.callbacks": json.dumps(callbacks),
    }
    command("fit", *config_words(), *option_words(options))
    measured: dict[str, Any] = json.loads(result.read_text())
    with (run / "metrics.csv").open() as lines:
        fitted = [float(row["train/loss"]) for row in csv.DictReader(lines) if row["train/loss"]]
    gap = max(abs(a - b) for a, b in zip(fitted, measured["losses"], strict=True))
    if gap > TOLERANCE:
        sys.exit(f"the losses differ by {gap:.1e}, so the two do not run the same steps")
    fit, bare = (measured["times"][name][1:] for name in ("fit", "bare"))  # the first block warms up
    ratios = [b / f for f, b in zip(fit, bare, strict=True)]
    return {
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "fit_ms_per_step": 1000 * median(fit) / block,
        "bare_ms_per_step": 1000 * median(bare) / block,
        "blocks": blocks,
        "steps_of_a_block": block,
        "largest_loss_gap": gap,
        "losses_compared": len(fitted),
    }


def main() -> None:
    """Measure, print the ratio, and write the record; exit with 1 below the target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=15, help="turns of each side that are timed")
    parser.add_argument("--block", type=int, default=20, help="steps of a turn")
    parser.add_argument(
        "--results", type=Path, default=RESULTS / "fit_overhead.json", help="JSON file to write"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        measured = measure(Path(work), args.blocks, args.block)
    content = {"hardware": hardware(), "threads": 1, "configs": CONFIGS, "target": TARGET, **measured}
    write_json(args.results, content)
    low, high = measured["lowest"], measured["highest"]
    print(f"fit has {measured['ratio']:.1%} of the speed of a bare loop ({low:.1%} to {high:.1%})")
    sys.exit(measured["ratio"] < TARGET)


if __name__ == "__main__":
    main()
