"""Describe a folder of shards or a model in any format that we read, or the memory that training takes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.cli.options import declare, flag, option, whole_number
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class InspectRequest:
    """The options of `inspect`."""

    path: str | None = option(
        "folder of shards; .ckpt of `fit`, exported folder, model or training checkpoint of audiocraft, hub id",
        positional=True,
        nargs="?",
    )
    clips: int = option(
        "clips of a shards folder to read for the statistics, evenly spread; 0 reads all",
        type=whole_number(0),
        default=5000,
        metavar="N",
    )
    memory: bool = flag(
        "instead: memory that training takes by precision, batch and LoRA, for the model at the path or, without one, for "
        "the shipped sizes"
    )


add_arguments = declare(InspectRequest)


def run(args: argparse.Namespace) -> None:
    """Print tables about the shards or the model at the path.

    Raises:
        UserError: There is neither.
    """
    request = InspectRequest(**vars(args))
    from rich.console import Console

    console = Console()
    for table in _tables(request):
        console.print(table)


def _tables(request: InspectRequest) -> list[Table]:
    if request.memory:
        from magnet_train.cli.tables.memory import memory_tables

        return memory_tables(request.path)
    if request.path is None:
        raise UserError("name a folder of shards or a model to inspect; `inspect --help` lists the kinds.")
    from magnet_train.checkpoints.audiocraft.names import STATE_FILE
    from magnet_train.checkpoints.export import CONFIG
    from magnet_train.storage.hub import is_hub_id

    path = Path(request.path)
    if not path.exists() and not is_hub_id(request.path):
        raise UserError(
            f"there is nothing at {path}; name a folder of shards, a .ckpt, or the folder of a model."
        )
    if path.is_dir() and not any((path / file).exists() for file in (CONFIG, STATE_FILE)):
        from magnet_train.cli.tables.shards import shard_tables

        return shard_tables(path, request.clips)
    from magnet_train.cli.tables.model import model_tables

    return model_tables(request.path)
