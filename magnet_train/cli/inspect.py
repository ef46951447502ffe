"""Show what is in a folder of shards, a checkpoint (.ckpt) or an exported model folder, in tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from magnet_train.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be set on the command line."""
    parser.add_argument("path", type=Path, help="folder of shards, .ckpt file, or exported folder")
    parser.add_argument(
        "--clips",
        type=int,
        default=5000,
        metavar="N",
        help="clips of a shards folder to read for the statistics, evenly spread; 0 reads all "
        "(default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Print tables about whatever lies at the path.

    Raises:
        UserError: There is nothing, or nothing of ours.
    """
    from rich.console import Console

    path: Path = args.path
    console = Console()
    if not path.exists():
        raise UserError(
            f"there is nothing at {path}; name a folder of shards, a .ckpt or an exported folder."
        )
    if path.is_dir() and not (path / "config.json").exists():
        from magnet_train.cli.shard_tables import shard_tables

        tables = shard_tables(path, args.clips)
    else:
        from magnet_train.cli.model_tables import model_tables

        tables = model_tables(path)
    for table in tables:
        console.print(table)
