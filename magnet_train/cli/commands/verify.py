"""Check every byte and token of a folder of shards; problems name shard and key, and the exit status is 1."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.cli.formatting import at_least, count, duration, size
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from datamodules.shards.manifest import Manifest
    from datamodules.shards.scan import Issue
    from datamodules.shards.verify import Progress
    from magnet_train.tokens import CodecInfo

_MOST_LINES = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be set on the command line."""
    parser.add_argument("shards", type=Path, metavar="DIR", help="folder of shards")
    parser.add_argument(
        "--write-index",
        action="store_true",
        help="make manifest and index for tars of KEY.npy and KEY.json from elsewhere, or a lost index again",
    )
    parser.add_argument(
        "--codec",
        metavar="NAME",
        help="with --write-index: the codec that made the tokens, if the shards do not say it",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="processes that read shards side by side (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Verify or adopt a folder.

    Raises:
        UserError: Something is wrong with it, or --codec stands alone.
    """
    if args.codec is not None and not args.write_index:
        raise UserError(
            "--codec is for --write-index; give both, or leave it out: a manifest names the codec."
        )
    from datamodules.shards.manifest import read_manifest
    from datamodules.shards.verify import adopt_shards, verify_shards

    if args.write_index:
        codec = None if args.codec is None else _codec_info(args.codec)
        with _progress() as progress:
            manifest = adopt_shards(args.shards, codec, workers=args.workers, progress=progress)
        print(f"indexed {_sizes(manifest)} in {args.shards}")
        return
    with _progress() as progress:
        problems = verify_shards(args.shards, workers=args.workers, progress=progress)
    if problems:
        raise _unsound(args.shards, problems)
    print(f"all sound: {_sizes(read_manifest(args.shards))} in {args.shards}, every byte and token checked")


def _unsound(folder: Path, problems: list[Issue]) -> UserError:
    """Say what is wrong: one problem in the error itself, several in a list before it."""
    remedy = ", or ".join(dict.fromkeys(problem.remedy for problem in problems))
    if len(problems) == 1:
        return UserError(f"{folder} has 1 problem: {problems[0]}; {remedy}.")
    for problem in problems[:_MOST_LINES]:
        print(problem)
    if len(problems) > _MOST_LINES:
        print(f"... and {len(problems) - _MOST_LINES} more")
    shards = len({problem.shard for problem in problems})
    return UserError(
        f"{folder} has {len(problems)} problems in {count(shards, 'file')}, listed above; {remedy}."
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a bar of shards once the first is read, and give the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("verify"), BarColumn(), MofNCompleteColumn(), TextColumn("shards, left"))
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    task = bar.add_task("verify", total=None)

    def move(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield move
    finally:
        if bar.live.is_started:
            bar.stop()


def _sizes(manifest: Manifest) -> str:
    bytes_in_all = sum(shard.bytes for shard in manifest.shards)
    return (
        f"{count(manifest.samples, 'clip')}, {duration(manifest.seconds)}, "
        f"{count(len(manifest.shards), 'shard')}, {size(bytes_in_all)}, codec {manifest.codec.id}"
    )


def _codec_info(name: str) -> CodecInfo:
    from magnet_train.codecs import load_codec

    return load_codec(name).info
