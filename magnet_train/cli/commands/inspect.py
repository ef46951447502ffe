"""Show what is in a folder of shards or in a model of any format that we read, or how much memory a training takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.cli.formatting import at_least
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be set on the command line."""
    parser.add_argument(
        "path",
        nargs="?",
        help="folder of shards; .ckpt of `fit`, exported folder, model or training checkpoint of audiocraft, hub id",
    )
    parser.add_argument(
        "--clips",
        type=at_least(0),
        default=5000,
        metavar="N",
        help="clips of a shards folder to read for the statistics, evenly spread; 0 reads all "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="instead: memory that training takes by precision, batch and LoRA, for the model at the path or, without "
        "one, for the shipped sizes",
    )


def run(args: argparse.Namespace) -> None:
    """Print tables about whatever lies at the path.

    Raises:
        UserError: There is nothing, or nothing of ours.
    """
    from rich.console import Console

    console = Console()
    if args.memory:
        from magnet_train.cli.tables.memory import memory_tables

        for table in memory_tables(args.path):
            console.print(table)
        return
    if args.path is None:
        raise UserError(
            "name what to inspect: a folder of shards or a model; `inspect --help` lists the kinds."
        )
    for table in _tables(args.path, args.clips):
        console.print(table)


def _tables(name: str, clips: int) -> list[Table]:
    from magnet_train.checkpoints.audiocraft.names import STATE_FILE
    from magnet_train.checkpoints.export import CONFIG
    from magnet_train.storage.hub import is_hub_id

    path = Path(name)
    if not path.exists() and not is_hub_id(name):
        raise UserError(
            f"there is nothing at {path}; name a folder of shards, a .ckpt, or the folder of a model."
        )
    if path.is_dir() and not any((path / file).exists() for file in (CONFIG, STATE_FILE)):
        from magnet_train.cli.tables.shards import shard_tables

        return shard_tables(path, clips)
    from magnet_train.cli.tables.model import model_tables

    return model_tables(name)
