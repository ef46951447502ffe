"""Decide what a run does with what lies in its folder."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from magnet_train.errors import Preempted, UserError
from magnet_train.storage.atomic_io import NO_ROOM, explain_disk_errors, sweep_partial_files
from magnet_train.training.checkpointing import checkpoints_of, find_checkpoint

METRICS = "metrics.csv"  # what Lightning's CSV logger writes
# Rank 0 of all has 0 in each of them. A launcher sets some: a child of Lightning's within a SLURM job has
# LOCAL_RANK 1 and its parent's SLURM_PROCID 0, the first process of torchrun's second machine LOCAL_RANK 0 and RANK 8.
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
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


def check_folder(name: str) -> Path:
    """Find out whether a run can be written there, before anything is built.

    Args:
        name: What `--run` says.

    Returns:
        The folder.

    Raises:
        UserError: It cannot, and why.
    """
    run = Path(name)
    if not name.strip() or "\0" in name or run.resolve() == Path.cwd():
        raise UserError(
            f"--run {name!r} names no folder of its own, and a run would be mixed with what lies in the current one; "
            "give it one, --run runs/NAME."
        )
    there = next(path for path in (run, *run.parents) if os.path.lexists(path))  # "." at the latest
    if not there.is_dir():
        raise UserError(f"--run {run} is no folder, since {there} is a file; give another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--run {run} cannot be written, {there} does not allow it; give another folder.")
    return run


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
def prepared(run: Path, began: Callable[[], bool]) -> Iterator[None]:
    """Make room for a run in its folder; where the run fails before training began, leave all as it was.

    What a killed run left half-written is swept, and the metrics of an earlier run are kept.

    Args:
        run: The run's folder.
        began: Tells whether training has begun.
    """
    if not first_process():
        yield
        return
    for path in sweep_partial_files(run):
        tell(f"removed {path}, which was not finished")
    before = set(run.rglob("*"))
    metrics = run / METRICS
    kept = next(path for n in itertools.count(1) if not (path := run / f"metrics.{n}.csv").exists())
    if metrics.exists():  # Lightning's CSV logger would empty it
        metrics.rename(kept)
    try:
        yield
    except BaseException:
        if not began():
            for path in sorted(set(run.rglob("*")) - before - {kept}, reverse=True):  # of loggers
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
        if kept.exists() and not metrics.exists():
            kept.rename(metrics)
        raise
    finally:
        if kept.exists():
            tell(f"kept the metrics of the run before as {kept}")


@contextlib.contextmanager
def explained(run: Path) -> Iterator[None]:
    """Make one sentence of a disk that is full or a folder that has gone, whichever file notices it first.

    Raises:
        UserError: Names the file, or the folder, and what is wrong.
    """
    try:
        yield
    except (UserError, Preempted):
        raise
    except Exception as error:
        cause = _disk_error(error, run)
        if cause is None:
            raise
        if isinstance(
            cause, UserError
        ):  # said before, and a logger stumbled over it once more on the way out
            raise cause from None
        target = Path(cause.filename) if isinstance(cause.filename, str) else run
        with explain_disk_errors(target):
            raise cause from None


def _disk_error(error: BaseException | None, run: Path) -> UserError | OSError | None:
    """Find in a chain of errors what was said of the disk already, else the first error of this run's folder."""
    first: OSError | None = None
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, UserError):
            return error
        if isinstance(error, OSError) and (error.errno in NO_ROOM or _lies_in(error.filename, run)):
            first = error
        error = error.__cause__ or error.__context__
    return first


def _lies_in(name: object, run: Path) -> bool:
    return isinstance(name, (str, Path)) and run.absolute() in (Path(name).absolute() / "-").parents


def first_process() -> bool:
    """Tell the process that may change the folder from those that Lightning, torchrun or SLURM start beside it."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def tell(message: str) -> None:
    """Print it once, whatever the number of processes."""
    if first_process():
        print(message, flush=True)
