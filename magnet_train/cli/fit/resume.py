"""Choose the checkpoint that `fit` resumes from, and refuse one of another run before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning.pytorch as pl

from datamodules import DataPosition
from datamodules.sampling.position import require_same_order
from magnet_train.cli.ranks import print_once, was_restarted
from magnet_train.errors import UserError
from magnet_train.training.checkpointing import checkpoints_of, find_checkpoint, peek
from magnet_train.training.module import MagnetModule

Resume = Literal["never", "auto", "required"]


def checkpoint_for_fit(run: Path, resume: Resume, named: str | None) -> Path | None:
    """Return the checkpoint that `fit` resumes from, with `named` of --ckpt_path; None to start from scratch.

    Raises:
        UserError: The folder holds another run, or no checkpoint can be read where one is needed.
    """
    if was_restarted() and checkpoints_of(run):
        resume, named = "auto", None  # the same run continues, whatever its command says
    if named is not None:
        _require_file(named, resume)
    if resume != "never":
        return _newest_checkpoint(run, resume)
    inside = named is not None and run.resolve() in Path(named).resolve().parents
    if not inside and (found := checkpoints_of(run)):
        held = "a run" if named is None else f"another run than {named}"
        raise UserError(
            f"{run} already holds {held} ({found[0].name}); continue it with --resume auto, or choose another folder "
            "with --run."
        )
    return None if named is None else Path(named)


def checkpoint_to_evaluate(command: str, resume: Resume, named: str | None, init_from: str | None) -> None:
    """Raise `UserError` unless `validate`, `test` or `predict` has a trained model."""
    if named is not None:
        _require_file(named, resume)
        print_once(f"reading {named}")
    elif init_from is None:
        raise UserError(
            f"`{command}` needs a trained model; name a checkpoint with --ckpt_path, or any model with --init_from."
        )


def _require_file(named: str, resume: Resume) -> None:
    if not Path(named).exists():
        raise UserError(f"--ckpt_path {named} does not exist; name a checkpoint that `fit` saved.")
    if resume != "never":
        raise UserError(
            f"--ckpt_path names a checkpoint and --resume {resume} searches for one; give one of the two."
        )


def _newest_checkpoint(run: Path, resume: Resume) -> Path | None:
    chosen, unreadable = find_checkpoint(run)
    for reason in unreadable:
        print_once(f"skipped: {reason}")
    if chosen is not None:
        return chosen
    if resume == "required":
        raise UserError(
            f"--resume required found no checkpoint that can be read in {run}; check --run, or start a new run with "
            "--resume never in another folder."
        )
    if unreadable:
        raise UserError(
            f"none of the checkpoints in {run} can be read; move them away to start a new run there, or choose another "
            "folder with --run."
        )
    print_once(f"{run} holds no checkpoint; starting a new run")
    return None


def require_same_run(checkpoint: Path, model: pl.LightningModule, data: pl.LightningDataModule) -> None:
    """Raise `UserError` for a checkpoint of other weights, codec, seed or clips, before loggers create files."""
    content = peek(checkpoint)
    if content is None:  # Lightning's loading of the whole file names the fault
        return
    if isinstance(model, MagnetModule):
        model.require_same_model(content, f"the checkpoint {checkpoint}")
    then, now = content.get("state_dict", {}), model.state_dict()
    # A sharded checkpoint keeps its weights elsewhere.
    for name in sorted(then.keys() | now.keys()) if then and model.strict_loading else ():
        shapes = [list(weights[name].shape) if name in weights else "none" for weights in (then, now)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the checkpoint {checkpoint} has weights {name} of shape {shapes[0]} and this run has {shapes[1]}; use the "
                "same configuration, or start a new run with --init_from."
            )
    position = content.get("callbacks", {}).get(DataPosition.__name__)
    if position is not None and hasattr(data, "identity"):
        data.setup("fit")
        require_same_order(position, data.identity(), f"the checkpoint {checkpoint}")
