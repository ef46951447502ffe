"""Decide what a run does with what lies in its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from magnet_train.errors import UserError
from magnet_train.survival import checkpoints_of, find_checkpoint
from magnet_train.whole_files import sweep_partial_files

Resume = Literal["never", "auto", "required"]


def choose_checkpoint(run: Path, resume: Resume) -> Path | None:
    """Find what `fit` goes on from, and tell it.

    Args:
        run: The run's folder.
        resume: "never" wants a folder without checkpoints, "auto" takes the newest readable one if there is
            one, "required" insists on it.

    Raises:
        UserError: There are checkpoints and there should be none, or none can be read and one should.
    """
    if resume == "never":
        if found := checkpoints_of(run):
            raise UserError(
                f"{run} already holds a run ({found[0].name}); go on with it by --resume auto, or give this run "
                "another folder by --run."
            )
        return None
    chosen, passed_over = find_checkpoint(run)
    for reason in passed_over:
        _tell(f"passed over: {reason}")
    if chosen is not None:
        _tell(f"resuming from {chosen}")
    elif resume == "required":
        raise UserError(
            f"--resume required finds no checkpoint that can be read in {run}; check --run, or start anew with "
            "--resume never and another folder."
        )
    elif passed_over:
        raise UserError(
            f"none of the checkpoints in {run} can be read; move them away to start anew, or give another --run."
        )
    else:
        _tell(f"{run} holds no checkpoint; starting anew")
    return chosen


def tidy(run: Path) -> None:
    """Sweep what a killed run left half-written, and keep the metrics of an earlier run."""
    if not first_process():
        return
    for path in sweep_partial_files(run):
        _tell(f"removed {path}, which was not finished")
    metrics = run / "metrics.csv"
    if metrics.exists():  # Lightning's CSV logger would empty it
        kept = metrics.with_name(f"metrics.{1 + len(list(run.glob('metrics.*.csv')))}.csv")
        metrics.rename(kept)
        _tell(f"kept the metrics of the run before as {kept}")


def first_process() -> bool:
    """Tell the process that may change the folder from those that Lightning, torchrun or SLURM start beside it."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def _tell(message: str) -> None:
    if first_process():
        print(message, flush=True)
