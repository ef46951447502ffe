"""Turn captioned audio into shards of tokens; files that cannot be used are listed in report.jsonl.

Stopped at any moment, the same command goes on where it was. Under torchrun or srun the processes share the
files out among them. Neither changes a byte of the result.
"""

# Shapes: tokens int64 [K, T].

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from magnet_train.cli.counting import at_least, count, duration
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.audio_files import AudioFile
    from datamodules.captions import CaptionTemplate
    from datamodules.shard_job import Finished, ShardJob
    from datamodules.work_unit import WorkUnit
    from magnet_train.cli.clip_reading import Clip
    from magnet_train.cli.ranks import Ranks
    from magnet_train.codecs import Codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be set on the command line."""
    parser.add_argument(
        "--audio",
        type=Path,
        required=True,
        metavar="DIR|FILE",
        help="folder of wav, flac, ogg and mp3, searched recursively, with a .json (text, description or "
        "caption) or .txt beside each file or tags in it; or a .jsonl or .csv with a path on each line, or the "
        ".csv of MusicCaps or AudioCaps beside its audio",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards")
    parser.add_argument(
        "--codec",
        default="facebook/encodec_32khz",
        metavar="NAME",
        help="a hub id or folder of an EnCodec, encodec_24khz, encodec_48khz, or quickstart, the small codec "
        "in this package (default: %(default)s)",
    )
    parser.add_argument(
        "--caption-template",
        metavar="TEXT",
        help="caption for files that have none, made of their other fields: '{genre} with {instrument}'",
    )
    parser.add_argument(
        "--files-per-shard",
        type=at_least(1),
        default=256,
        metavar="N",
        help="files that make one shard, and what processes share out; fewer for files of hours "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=2,
        metavar="N",
        help="threads of each process that read and resample (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        help="where the codec runs: cpu, cuda, cuda:1, ... (default: of the CUDA devices the one of this "
        "process, else cpu)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first file that cannot be used, with exit status 1"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the shards in --out, finished or not, and start anew"
    )


def run(args: argparse.Namespace) -> None:
    """Tokenize every usable file, or what an earlier run left to do.

    Raises:
        UserError: Nothing usable, an output folder in use or begun otherwise, no room on disk, or any bad
            file with --strict.
    """
    from rich.console import Console
    from rich.markup import escape

    from datamodules.audio_files import fingerprint, list_audio
    from datamodules.captions import CaptionTemplate
    from datamodules.report import few_of
    from datamodules.shard_job import NothingUsableError, ShardJob, clear_shards
    from magnet_train.cli.ranks import read_ranks
    from magnet_train.codecs import load_codec
    from magnet_train.long_audio import CHUNK_SECONDS, CONTEXT_SECONDS

    ranks = read_ranks()
    template = None if args.caption_template is None else CaptionTemplate(args.caption_template)
    with Console(stderr=True).status(f"looking through {escape(str(args.audio))}"):
        files = list_audio(args.audio)
        sources = fingerprint(files)
    codec = load_codec(args.codec, device=args.device or _device(ranks))
    if args.overwrite:
        if ranks.ranks > 1:
            raise UserError(f"--overwrite is for one process; remove {args.out} before starting several.")
        clear_shards(args.out)
    settings = {
        "sources_sha256": sources,
        "caption_template": args.caption_template,
        "chunk_seconds": CHUNK_SECONDS,
        "context_seconds": CONTEXT_SECONDS,
    }
    job = ShardJob(args.out, codec.info, settings, len(files), args.files_per_shard)
    before = job.complete
    if not before:
        try:
            _work(job, files, codec, template, args, ranks)
        except KeyboardInterrupt:
            print("stopped; the same command goes on with the next file", file=sys.stderr)
            raise
    try:
        finished = job.finish(strict=args.strict)
    except NothingUsableError as error:
        for file in few_of(error.left_out) if len(files) > 1 else []:  # else the error says it all
            print(f"{file.path}: {file.reason}", file=sys.stderr)
        raise
    if finished is None:
        print(f"rank {ranks.rank} of {ranks.ranks} has done its share; {args.out} is ready when all have")
    else:
        _print_summary(args.out, finished, before)


def _work(
    job: ShardJob,
    files: Sequence[AudioFile],
    codec: Codec,
    template: CaptionTemplate | None,
    args: argparse.Namespace,
    ranks: Ranks,
) -> None:
    """Do this process's share of the job, or what is left of it."""
    from magnet_train.cli.clip_reading import read_clips

    units = list(job.units(ranks.rank, ranks.ranks))
    with _Meter(sum(len(places) for _, places in units), ranks) as meter:
        for unit, places in units:
            if unit.finished:
                meter.count_files(len(places))
                continue
            with unit:
                done = len(unit.outcomes)
                meter.count_files(done)
                left = [files[place] for place in places[done:]]
                _fill(unit, read_clips(left, codec, template, args.workers), codec, args.strict, meter)


def _fill(unit: WorkUnit, clips: Iterable[Clip], codec: Codec, strict: bool, meter: _Meter) -> None:
    """Tokenize what is left of a unit.

    Raises:
        UserError: A file cannot be used, in strict mode; no room on disk.
    """
    from datamodules.shard_job import unusable
    from magnet_train.cli.clip_reading import Unusable
    from magnet_train.long_audio import encode_blocks

    for clip in clips:
        try:
            tokens = encode_blocks(codec, meter.listen(clip.blocks(), codec.sample_rate))
        except Unusable as reason:
            if strict:
                raise unusable(clip.file.label, str(reason)) from reason
            unit.leave_out(clip.file.label, str(reason))
        else:
            unit.add(clip.file.label, clip.file.key, tokens.cpu().numpy(), clip.metadata, clip.audio_hash)
        meter.count_files(1)
    unit.finish()


class _Meter:
    """A bar of files with hours of audio per minute; hidden but in the process of rank 0.

    Args:
        files: Files in this process's share.
        ranks: Which process this is.
    """

    def __init__(self, files: int, ranks: Ranks) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files  {task.fields[rate]}  left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=ranks.rank > 0,
        )
        share = "" if ranks.ranks == 1 else f" (rank 0 of {ranks.ranks})"
        self._task = self._bar.add_task(f"tokenize{share}", total=files, rate="")
        self._seconds = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def count_files(self, number: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, advance=number)

    def listen(self, blocks: Iterable[Tensor], sample_rate: int) -> Iterator[Tensor]:
        """Pass blocks [channels, samples] on and count their audio."""
        for block in blocks:
            yield block
            self._seconds += block.shape[-1] / sample_rate
            speed = self._seconds / 60 / max(time.monotonic() - self._started, 1e-9)
            self._bar.update(self._task, rate=f"{speed:.2f} h of audio/min")


def _print_summary(folder: Path, finished: Finished, before: bool) -> None:
    from datamodules.report import REPORT_NAME, summarize

    manifest = finished.manifest
    clips, shards = count(manifest.samples, "clip"), count(len(manifest.shards), "shard")
    sizes = f"{clips} ({duration(manifest.seconds)}) in {shards}"
    print(f"{folder} was finished before: {sizes}" if before else f"wrote {sizes} to {folder}")
    if finished.left_out:
        files = count(len(finished.left_out), "file")
        print(f"left out {files} ({summarize(finished.left_out)}); reasons in {folder / REPORT_NAME}")


def _device(ranks: Ranks) -> str:
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{ranks.local_rank % gpus}" if gpus else "cpu"
