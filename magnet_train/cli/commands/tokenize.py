"""Tokenize captioned audio into shards; files that cannot be used are listed in report.jsonl.

Stopped at any moment, the same command resumes. Under torchrun or srun the processes share the files out. Neither
changes a byte of the result.
"""

# Shapes: tokens int64 [K, T].

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.cli.console import count, duration
from magnet_train.cli.options import DeviceOptions, declare, flag, option, whole_number
from magnet_train.cli.ranks import Ranks, read_ranks
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from datamodules.tokenize.audio_files import AudioFile
    from datamodules.tokenize.captions import CaptionTemplate
    from datamodules.tokenize.job import Finished, ShardJob
    from datamodules.tokenize.report import Skipped
    from datamodules.tokenize.work_unit import WorkUnit
    from magnet_train.cli.clip_reading import Clip
    from magnet_train.cli.tokenize_progress import TokenizeProgress
    from magnet_train.codecs import Codec


@dataclass(frozen=True)
class TokenizeRequest(DeviceOptions):
    """The options of `tokenize`; processes that share the work compute on a GPU each by default."""

    audio: Path = option(
        "folder of wav, flac, ogg, opus, mp3, aiff, w64, caf and au, searched recursively, with a .json (text, "
        "description or caption) or .txt beside each file or tags in it; or a .jsonl or .csv with a path in each row, or "
        "the .csv of MusicCaps or AudioCaps beside its audio",
        required=True,
        type=Path,
        metavar="DIR|FILE",
    )
    out: Path = option("folder for the shards", required=True, type=Path, metavar="DIR")
    codec: str = option(
        "a hub id or folder of an EnCodec, encodec_24khz, encodec_48khz, or quickstart, the small codec in this package",
        default="facebook/encodec_32khz",
        metavar="NAME",
    )
    caption_template: str | None = option(
        "caption for files without one, made from their other fields: '{genre} with {instrument}'",
        metavar="TEXT",
    )
    files_per_shard: int = option(
        "files in a shard, the unit that processes share out; fewer for files of hours",
        type=whole_number(1),
        default=256,
        metavar="N",
    )
    workers: int = option(
        "threads per process that read and resample", type=whole_number(1), default=2, metavar="N"
    )
    rescale: bool = flag(
        "scale float files in the range of 8, 16, 24 or 32-bit integers to -1..1 instead of leaving them out"
    )
    strict: bool = flag("stop with exit code 1 at the first file that is not used completely")
    overwrite: bool = flag("remove the shards in --out, finished or not, and start again")


add_arguments = declare(TokenizeRequest)


def run(args: argparse.Namespace) -> None:
    """Tokenize every usable file, or the rest of an earlier run.

    Raises:
        UserError: Nothing usable, an output folder in use or begun with other settings, no room on disk, or any bad
            file with --strict.
    """
    request = TokenizeRequest(**vars(args))
    from rich.console import Console
    from rich.markup import escape

    from datamodules.tokenize.audio_files import list_audio
    from datamodules.tokenize.captions import CaptionTemplate
    from datamodules.tokenize.job import ShardJob, clear_shards
    from datamodules.tokenize.sources import fingerprint
    from magnet_train.codecs import load_codec
    from magnet_train.codecs.chunked import CHUNK_SECONDS, CONTEXT_SECONDS

    ranks = read_ranks()
    template = None if request.caption_template is None else CaptionTemplate(request.caption_template)
    with Console(stderr=True).status(f"looking through {escape(str(request.audio))}"):
        files = list_audio(request.audio)
        sources = fingerprint(files)
    codec = load_codec(request.codec, device=request.chosen_device(ranks.local_rank))
    if request.overwrite:
        if ranks.ranks > 1:
            raise UserError(f"--overwrite is for one process; remove {request.out} before starting several.")
        clear_shards(request.out)
    settings = {
        "sources_sha256": sources,
        "caption_template": request.caption_template,
        "chunk_seconds": CHUNK_SECONDS,
        "context_seconds": CONTEXT_SECONDS,
        **({"rescale": True} if request.rescale else {}),
    }
    job = ShardJob(request.out, codec.info, settings, len(files), request.files_per_shard, files)
    before = job.complete
    if not before:
        try:
            _work(job, files, codec, template, request, ranks)
        except KeyboardInterrupt:
            print("stopped; the same command resumes with the next file", file=sys.stderr)
            raise
    finished = _finish(job, request.strict)
    if finished is None:
        print(f"rank {ranks.rank} of {ranks.ranks} has done its share; {request.out} is ready when all have")
    else:
        _print_summary(request.out, finished, before)


def _work(
    job: ShardJob,
    files: Sequence[AudioFile],
    codec: Codec,
    template: CaptionTemplate | None,
    request: TokenizeRequest,
    ranks: Ranks,
) -> None:
    """Do this process's share of the job, or the rest of it."""
    from magnet_train.cli.clip_reading import read_clips
    from magnet_train.cli.tokenize_progress import TokenizeProgress

    units = list(job.units(ranks.rank, ranks.ranks))
    share = [files[place] for _, places in units for place in places]
    with TokenizeProgress(share, codec.sample_rate, ranks) as progress:
        for unit, places in units:
            mine = [files[place] for place in places]
            if unit.finished:
                progress.skip(mine)
                continue
            with unit:
                done = len(unit.outcomes)
                progress.skip(mine[:done])
                clips = read_clips(mine[done:], codec, template, request.workers, rescale=request.rescale)
                _fill(unit, clips, codec, request.strict, progress)


def _fill(
    unit: WorkUnit, clips: Iterable[Clip], codec: Codec, strict: bool, progress: TokenizeProgress
) -> None:
    """Tokenize the rest of a unit.

    Raises:
        UserError: A file cannot be used, in strict mode; no room on disk.
    """
    from datamodules.tokenize.job import unusable
    from magnet_train.cli.clip_reading import Unusable
    from magnet_train.codecs.chunked import encode_blocks

    for clip in clips:
        label = clip.file.label
        try:
            tokens = encode_blocks(codec, progress.count_audio(clip.blocks()))
            if strict and clip.shortfall is not None:
                raise Unusable(f"partial: {clip.shortfall}")
        except Unusable as reason:
            if strict:
                raise unusable(label, str(reason)) from reason
            unit.leave_out(label, str(reason))
        else:
            unit.add(
                label, clip.file.key, tokens.cpu().numpy(), clip.metadata, clip.audio_hash, clip.shortfall
            )
        progress.finish(clip.file)
    unit.finish()


def _finish(job: ShardJob, strict: bool) -> Finished | None:
    """Put the shards in their places; where no file was usable, print a few reasons before the error."""
    from datamodules.tokenize.job import NothingUsableError
    from datamodules.tokenize.report import few_of
    from magnet_train.storage.plain_text import printable

    try:
        return job.finish(strict=strict)
    except NothingUsableError as error:
        for file in few_of(error.left_out) if job.files > 1 else []:  # else the error names the only one
            print(printable(f"{file.path}: {file.reason}"), file=sys.stderr)
        _print_remedy(error.left_out)
        raise


def _print_summary(folder: Path, finished: Finished, before: bool) -> None:
    from datamodules.tokenize.report import REPORT_NAME, summarize

    manifest = finished.manifest
    clips, shards = count(manifest.samples, "clip"), count(len(manifest.shards), "shard")
    sizes = f"{clips} ({duration(manifest.seconds)}) in {shards}"
    print(f"{folder} was finished before: {sizes}" if before else f"wrote {sizes} to {folder}")
    if finished.left_out:
        files = count(len(finished.left_out), "file")
        print(f"left out {files} ({summarize(finished.left_out)}); reasons in {folder / REPORT_NAME}")
    if finished.partial:
        files = count(len(finished.partial), "file")
        print(f"read {files} in part only; how much of each is in {folder / REPORT_NAME}")
    _print_remedy(finished.left_out)


def _print_remedy(left_out: Sequence[Skipped]) -> None:
    """Print for each audio format that is not read how to convert it."""
    from datamodules.tokenize.audio_files import suffixes_not_read

    for suffix, number in suffixes_not_read(file.reason for file in left_out):
        one = "$f"
        print(
            f"{count(number, suffix + ' file')} not read; to convert all in a folder: "
            f'for f in *.{suffix}; do ffmpeg -i "{one}" "${{f%.{suffix}}}.flac"; done'
        )
