"""Turn captioned audio into shards of tokens; files that cannot be used are listed in report.jsonl.

Stopped at any moment, the same command goes on where it was. Under torchrun or srun the processes share the
files out among them. Neither changes a byte of the result.
"""

# Shapes: tokens int64 [K, T].

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.cli.formatting import at_least, count, duration
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from datamodules.tokenize.audio_files import AudioFile
    from datamodules.tokenize.captions import CaptionTemplate
    from datamodules.tokenize.job import Finished, ShardJob
    from datamodules.tokenize.report import Skipped
    from datamodules.tokenize.work_unit import WorkUnit
    from magnet_train.cli.clip_reading import Clip
    from magnet_train.cli.ranks import Ranks
    from magnet_train.cli.tokenize_progress import Meter
    from magnet_train.codecs import Codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be set on the command line."""
    parser.add_argument(
        "--audio",
        type=Path,
        required=True,
        metavar="DIR|FILE",
        help="folder of wav, flac, ogg, opus, mp3, aiff, w64, caf and au, searched recursively, with a .json "
        "(text, description or caption) or .txt beside each file or tags in it; or a .jsonl or .csv with a path on "
        "each line, or the "
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
        "--rescale",
        action="store_true",
        help="bring float files at the scale of 8, 16, 24 or 32-bit integers to full scale; they are left out otherwise",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first file that cannot be used, or in part only, with exit status 1",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the shards in --out, finished or not, and start again",
    )


def run(args: argparse.Namespace) -> None:
    """Tokenize every usable file, or what an earlier run left to do.

    Raises:
        UserError: Nothing usable, an output folder in use or begun otherwise, no room on disk, or any bad
            file with --strict.
    """
    from rich.console import Console
    from rich.markup import escape

    from datamodules.tokenize.audio_files import list_audio
    from datamodules.tokenize.captions import CaptionTemplate
    from datamodules.tokenize.job import NothingUsableError, ShardJob, clear_shards
    from datamodules.tokenize.report import few_of, printable
    from datamodules.tokenize.sources import fingerprint
    from magnet_train.audio.chunked import CHUNK_SECONDS, CONTEXT_SECONDS
    from magnet_train.cli.ranks import read_ranks
    from magnet_train.codecs import load_codec

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
        **({"rescale": True} if args.rescale else {}),
    }
    job = ShardJob(args.out, codec.info, settings, len(files), args.files_per_shard, files)
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
            print(printable(f"{file.path}: {file.reason}"), file=sys.stderr)
        _print_remedy(error.left_out)
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
    from magnet_train.cli.tokenize_progress import Meter

    units = list(job.units(ranks.rank, ranks.ranks))
    share = [files[place] for _, places in units for place in places]
    with Meter(share, codec.sample_rate, ranks) as meter:
        for unit, places in units:
            mine = [files[place] for place in places]
            if unit.finished:
                meter.skip(mine)
                continue
            with unit:
                done = len(unit.outcomes)
                meter.skip(mine[:done])
                clips = read_clips(mine[done:], codec, template, args.workers, rescale=args.rescale)
                _fill(unit, clips, codec, args.strict, meter)


def _fill(unit: WorkUnit, clips: Iterable[Clip], codec: Codec, strict: bool, meter: Meter) -> None:
    """Tokenize what is left of a unit.

    Raises:
        UserError: A file cannot be used, in strict mode; no room on disk.
    """
    from datamodules.tokenize.job import unusable
    from magnet_train.audio.chunked import encode_blocks
    from magnet_train.cli.clip_reading import Unusable

    for clip in clips:
        label = clip.file.label
        try:
            tokens = encode_blocks(codec, meter.listen(clip.blocks()))
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
        meter.finish(clip.file)
    unit.finish()


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
    """Say how to convert what is sound and not read, by suffix."""
    from datamodules.tokenize.audio_files import suffixes_not_read

    for suffix, number in suffixes_not_read(file.reason for file in left_out):
        one = "$f"
        print(
            f"{count(number, suffix + ' file')} not read; to convert all in a folder: "
            f'for f in *.{suffix}; do ffmpeg -i "{one}" "${{f%.{suffix}}}.flac"; done'
        )


def _device(ranks: Ranks) -> str:
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{ranks.local_rank % gpus}" if gpus else "cpu"
