"""Decide what a run does with what lies in its folder."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from magnet_train.errors import UserError
from magnet_train.survival import checkpoints_of, find_checkpoint
from magnet_train.whole_files import sweep_partial_files

METRICS = "metrics.csv"  # what Lightning's CSV logger writes
Resume = Literal["never", "auto", "required"]


def choose_checkpoint(run: Path, resume: Resume) -> Path | None:
    """Find what `fit` goes on from, and tell what is passed over.

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
        tell(f"passed over: {reason}")
    if chosen is not None:
        return chosen
    if resume == "required":
        raise UserError(
            f"--resume required finds no checkpoint that can be read in {run}; check --run, or start anew with "
            "--resume never and another folder."
        )
    if passed_over:
        raise UserError(
            f"none of the checkpoints in {run} can be read; move them away to start anew, or give another --run."
        )
    tell(f"{run} holds no checkpoint; starting anew")
    return None


def check_folder(run: Path) -> None:
    """Find out whether a run can be written there, before anything is built.

    Raises:
        UserError: It cannot, and why.
    """
    there = next(path for path in (run, *run.parents) if os.path.lexists(path))  # "." at the latest
    if not there.is_dir():
        raise UserError(f"--run {run} is no folder, since {there} is a file; give another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--run {run} cannot be written, {there} does not allow it; give another folder.")


def check_checkpoint(run: Path, checkpoint: Path) -> None:
    """See that `fit` may go on from `checkpoint` in this folder.

    Raises:
        UserError: The folder holds checkpoints of another run.
    """
    if run.resolve() not in checkpoint.resolve().parents and (found := checkpoints_of(run)):
        raise UserError(
            f"{run} already holds another run than {checkpoint} ({found[0].name}); go on with that by --resume auto, "
            "or give this one another folder by --run."
        )


@contextlib.contextmanager
def prepared(run: Path) -> Iterator[None]:
    """Make room for a run in its folder; where the run fails before it wrote anything, leave all as it was.

    What a killed run left half-written is swept, and the metrics of an earlier run are kept.
    """
    if not first_process():
        yield
        return
    for path in sweep_partial_files(run):
        tell(f"removed {path}, which was not finished")
    made = [path for path in (run, *run.parents) if not path.exists()]
    metrics = run / METRICS
    kept = next(path for n in itertools.count(1) if not (path := run / f"metrics.{n}.csv").exists())
    if metrics.exists():  # Lightning's CSV logger would empty it
        metrics.rename(kept)
    try:
        yield
    except BaseException:
        if kept.exists() and not metrics.exists():
            kept.rename(metrics)
        with contextlib.suppress(OSError):  # it holds something
            for path in made:
                path.rmdir()
        raise
    finally:
        if kept.exists():
            tell(f"kept the metrics of the run before as {kept}")


def first_process() -> bool:
    """Tell the process that may change the folder from those that Lightning, torchrun or SLURM start beside it."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def tell(message: str) -> None:
    """Print it once, whatever the number of processes."""
    if first_process():
        print(message, flush=True)
