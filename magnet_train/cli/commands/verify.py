"""Check every byte and token of a folder of shards; a problem is reported by shard and key, with exit code 1."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from datamodules.shards.manifest import Manifest, read_manifest
from datamodules.shards.scan import Issue
from datamodules.shards.verify import adopt_shards, verify_shards
from magnet_train.cli.console import ProgressBar, count, duration
from magnet_train.cli.options import declare, flag, option, whole_number
from magnet_train.errors import UserError

_MOST_LINES = 50


@dataclass(frozen=True)
class VerifyRequest:
    """The options of `verify`; raises `UserError` for options that need another one."""

    shards: Path = option("folder of shards", positional=True, metavar="DIR")
    write_index: bool = flag(
        "write manifest and index: for tars of KEY.npy and KEY.json that another program made, or in place of lost ones"
    )
    codec: str | None = option(
        "with --write_index: the codec of the tokens, if the shards do not name it", metavar="NAME"
    )
    codebooks: int | None = option(
        "with --codec: the shards hold its first N codebooks (default: all)",
        type=whole_number(1),
        metavar="N",
    )
    stereo: bool = flag("with --codec: the shards hold left and right, encoded with a mono codec")
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
        if self.codec is None and (self.codebooks is not None or self.stereo):
            raise UserError("--codebooks and --stereo describe --codec; give it as well, or leave them out.")


add_arguments = declare(VerifyRequest)


def run(request: VerifyRequest) -> None:
    """Verify or index a folder; raises `UserError` if it has a problem."""
    folder, workers = request.shards, request.workers
    if request.write_index:
        codec = None
        if request.codec is not None:
            from magnet_train.codecs import load_codec  # imports torch

            codec = load_codec(request.codec, codebooks=request.codebooks, stereo=request.stereo).info
        with ProgressBar("verify", "shards") as bar:
            manifest = adopt_shards(folder, codec, workers=workers, progress=bar.update)
        print(f"indexed {_sizes(manifest)} in {folder}")
        return
    with ProgressBar("verify", "shards") as bar:
        problems = verify_shards(folder, workers=workers, progress=bar.update)
    if problems:
        raise _report(folder, problems)
    print(f"all sound: {_sizes(read_manifest(folder))} in {folder}, every byte and token checked")


def _report(folder: Path, problems: list[Issue]) -> UserError:
    """Return the error: one problem, or the number of several, which are printed."""
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
        f"{count(len(manifest.shards), 'shard')}, {decimal(total)}, codec {manifest.codec.id}"
    )
