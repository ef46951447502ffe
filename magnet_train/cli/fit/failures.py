"""How a run ends early or fails, in one sentence: an early stop, Ctrl-C, a lost rank, a full disk, library errors."""

from __future__ import annotations

import contextlib
import itertools
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from magnet_train.errors import AgreedError, Preempted, UserError, memory_reason
from magnet_train.models.memory import MEMORY_ERRORS, is_full_memory
from magnet_train.storage.atomic_io import NO_ROOM, explain_disk_errors
from magnet_train.training.checkpointing import checkpoints_of
from magnet_train.training.lightning_internals import end_launched_ranks

GRACE = 20.0  # seconds for ranks that all know that the run is over
_LOST_RANK = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|timed out", re.IGNORECASE)
_OURS = ("magnet_train", "datamodules")
LIBRARY_ERRORS = (MisconfigurationException, ValueError, TypeError, ImportError, *MEMORY_ERRORS)
_CALLBACKS = ("lightning.pytorch.callbacks", "lightning.fabric.utilities.spike")


def early_stop(trainer: pl.Trainer) -> str | None:
    """Return why a training ended before `max_steps`; None if it did not, or its epochs ended."""
    if not trainer.should_stop or trainer.global_step == trainer.max_steps:
        return None
    where = f"stopped after step {trainer.global_step} of {trainer.max_steps}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return f"{where}: the time of {type(callback).__name__} or trainer.max_time is over."
        if reason := getattr(callback, "stopping_reason_message", None):
            return (
                f"{where} by {type(callback).__name__}: {reason.removesuffix(' Signaling Trainer to stop.')}"
            )
    return f"{where}: a callback or the model set trainer.should_stop."


@contextlib.contextmanager
def training_failures(trainer: pl.Trainer, run: Path) -> Iterator[None]:
    """Explain a lost rank, a failing disk or Ctrl-C in a training, and end the ranks that Lightning launched."""
    try:
        with disk_failures(run):
            yield
    except BaseException as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits from within it
            error.__context__.args = (_interrupted(trainer, run),)
        end_launched_ranks(trainer, grace=GRACE if isinstance(error, (AgreedError, Preempted)) else 0.0)
        if trainer.world_size > 1 and isinstance(error, RuntimeError) and _LOST_RANK.search(str(error)):
            raise UserError(
                f"rank {trainer.global_rank} lost contact with another rank ({str(error).splitlines()[0][:200]}); see the "
                "output of that rank, and continue with --resume auto."
            ) from error
        raise


def _interrupted(trainer: pl.Trainer, run: Path) -> str:
    if not trainer.global_step:
        return "interrupted before the first step; start it again with the same command."
    saved = "nothing was saved yet; start it again with the same command."
    if found := checkpoints_of(run):
        saved = f"{found[0]} is the newest checkpoint, and --resume auto continues from it."
    return f"interrupted after step {trainer.global_step}; {saved}"


@contextlib.contextmanager
def disk_failures(run: Path) -> Iterator[None]:
    """Raise `UserError` for a full disk or a deleted folder, whichever file notices it first."""
    try:
        yield
    except (UserError, Preempted):
        raise
    except Exception as error:
        chain = _chain(error)
        if ours := _user_error(chain):  # explained already; a logger failed once more on the way out
            raise ours from None
        disk = [cause for cause in chain if isinstance(cause, OSError) and _is_about_disk(cause, run)]
        if not disk:
            raise
        first = disk[-1]
        with explain_disk_errors(Path(first.filename) if isinstance(first.filename, str) else run):
            raise first from None


def _is_about_disk(error: OSError, run: Path) -> bool:
    if error.errno in NO_ROOM:
        return True
    name = error.filename
    return isinstance(name, str | Path) and Path(name).absolute().is_relative_to(run.absolute())


def explain(error: BaseException) -> UserError | None:
    """Return one sentence for what a library rejects because of something that the user wrote, or a full memory.

    That is what Lightning calls a misconfiguration, and what the constructor of a class of the configuration, the
    trainer's constructor or one of Lightning's callbacks raises. The parser and Lightning wrap the original error.

    Returns:
        None for any other error, which is a bug and keeps its traceback; so does what our own classes raise.
    """
    chain = _chain(error)
    explained = map(_explain_memory, chain), map(_explain_library, chain)
    return _user_error(chain) or next(filter(None, itertools.chain(*explained)), None)


def _explain_memory(error: BaseException) -> UserError | None:
    if not is_full_memory(error):
        return None
    return UserError(
        f"memory does not suffice ({memory_reason(error)}); halve data.batch_size (in fit, --global_batch keeps the "
        "clips of a step, and model.recompute_activations takes time instead of memory)."
    )


def _explain_library(error: BaseException) -> UserError | None:
    if not isinstance(error, LIBRARY_ERRORS):
        return None
    text = " ".join(str(error).replace("`", "").split())[:300].rstrip(".!: ")
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__", "")) for frame in frames]
    built = max((n for n, name in enumerate(modules) if name.startswith("jsonargparse")), default=-1) + 1
    if 0 < built < len(frames) and frames[built].f_code.co_name == "__init__":
        kind = type(frames[built].f_locals.get("self"))
        if kind.__module__.partition(".")[0] not in _OURS:
            return UserError(
                f"{kind.__qualname__} rejects its init_args ({text}); correct them in the configuration."
            )
    if modules and modules[-1].startswith(_CALLBACKS):
        name = type(frames[-1].f_locals.get("self")).__name__
        return UserError(f"{name} failed ({text}); change trainer.callbacks in the configuration.")
    in_trainer = "Trainer.__init__" in [frame.f_code.co_qualname for frame in frames]
    if in_trainer or isinstance(error, MisconfigurationException):
        return UserError(f"the trainer rejects its options ({text}); change trainer.* in the configuration.")
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    """List an error and those that it was raised from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _user_error(chain: list[BaseException]) -> UserError | None:
    return next((cause for cause in chain if isinstance(cause, UserError)), None)
