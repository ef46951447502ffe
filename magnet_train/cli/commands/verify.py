"""Check every byte and token of a folder of shards; problems name shard and key, and the exit code is 1."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.cli.console import ProgressBar, count, duration, size
from magnet_train.cli.options import declare, flag, option, whole_number
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from datamodules.shards.manifest import Manifest
    from datamodules.shards.scan import Issue
    from magnet_train.tokens import CodecInfo

_MOST_LINES = 50


@dataclass(frozen=True)
class VerifyRequest:
    """The options of `verify`.

    Raises:
        UserError: --codec without --write_index.
    """

    shards: Path = option("folder of shards", positional=True, type=Path, metavar="DIR")
    write_index: bool = flag(
        "write manifest and index for tars of KEY.npy and KEY.json from elsewhere, or a lost index again"
    )
    codec: str | None = option(
        "with --write_index: the codec of the tokens, if the shards do not name it", metavar="NAME"
    )
    workers: int = option(
        "processes that read shards in parallel",
        type=whole_number(1),
        default=min(4, os.cpu_count() or 1),
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.codec is not None and not self.write_index:
            raise UserError(
                "--codec is for --write_index; give both, or leave it out: a manifest names the codec."
            )


add_arguments = declare(VerifyRequest)


def run(args: argparse.Namespace) -> None:
    """Verify or index a folder.

    Raises:
        UserError: The folder has a problem, or --codec stands alone.
    """
    request = VerifyRequest(**vars(args))
    from datamodules.shards.manifest import read_manifest
    from datamodules.shards.verify import adopt_shards, verify_shards

    folder, workers = request.shards, request.workers
    with ProgressBar("verify", "shards") as bar:
        if request.write_index:
            codec = None if request.codec is None else _codec_info(request.codec)
            manifest = adopt_shards(folder, codec, workers=workers, progress=bar.update)
        else:
            problems = verify_shards(folder, workers=workers, progress=bar.update)
    if request.write_index:
        print(f"indexed {_sizes(manifest)} in {folder}")
        return
    if problems:
        raise _report(folder, problems)
    print(f"all sound: {_sizes(read_manifest(folder))} in {folder}, every byte and token checked")


def _report(folder: Path, problems: list[Issue]) -> UserError:
    """Return one problem as the error itself; print several and return their number."""
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


def _sizes(manifest: Manifest) -> str:
    total = sum(shard.bytes for shard in manifest.shards)
    return (
        f"{count(manifest.samples, 'clip')}, {duration(manifest.seconds)}, "
        f"{count(len(manifest.shards), 'shard')}, {size(total)}, codec {manifest.codec.id}"
    )


def _codec_info(name: str) -> CodecInfo:
    from magnet_train.codecs import load_codec  # imports torch

    return load_codec(name).info
