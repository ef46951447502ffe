"""Tokenize captioned audio into shards; files that cannot be used are listed in report.jsonl.

After an interruption the same command resumes. Under torchrun or srun the files are divided among the processes. The
result has the same bytes either way. If files or captions have changed since, the same command adds shards for new files
and rewrites those that lose samples or get other captions, without reading their audio again.
"""

# Shapes: tokens int64 [K, T].

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from datamodules.tokenize.audio_files import AudioFile, find_audio, local_source, suffixes_not_read
from datamodules.tokenize.caption_rules import CaptionColumn, CaptionRule, CaptionTemplate
from datamodules.tokenize.description import SUFFIX, has_description
from datamodules.tokenize.job import Finished, NothingUsableError, ShardJob, clear_shards, unusable
from datamodules.tokenize.readers.audio_file import AV_SUFFIXES
from datamodules.tokenize.readers.folders import NEEDS_AV
from datamodules.tokenize.report import REPORT_NAME, Skipped, few_of, summarize
from datamodules.tokenize.sources import take_stats
from datamodules.tokenize.work_unit import WorkUnit
from magnet_train.cli.audio_summary import summarize_sources
from magnet_train.cli.console import count, duration, escape
from magnet_train.cli.options import DeviceOptions, declare, flag, option, whole_number
from magnet_train.cli.ranks import Ranks, read_ranks
from magnet_train.cli.tokenize_progress import TokenizeProgress
from magnet_train.errors import UserError
from magnet_train.storage.plain_text import printable

if TYPE_CHECKING:
    from magnet_train.cli.clip_reading import Clip
    from magnet_train.codecs import Codec


@dataclass(frozen=True)
class TokenizeRequest(DeviceOptions):
    """The options of `tokenize`; processes that share the work compute on a GPU each by default."""

    audio: str = option(
        "folder of audio, searched recursively, with captions in a .json (text, description or caption) or .txt beside each "
        "file, in its tags, or in a metadata.csv, .jsonl or .parquet; or a table (.csv, .tsv, .jsonl, .json, .parquet) with "
        "a path, an id or the audio itself in each row; on this machine or at hf://datasets/OWNER/NAME",
        required=True,
        metavar="DIR|FILE",
    )
    out: Path = option("folder for the shards", required=True, metavar="DIR")
    codec: str = option(
        "hub id or folder of an EnCodec, DAC, Mimi or X-Codec; encodec_24khz or encodec_48khz; or quickstart, "
        "drums_and_bass or band, small codecs of synthetic sound in this package",
        default="facebook/encodec_32khz",
        metavar="NAME",
    )
    codebooks: int | None = option(
        "use only the first N codebooks of the codec (default: all)", type=whole_number(1), metavar="N"
    )
    stereo: bool = flag("encode left and right with a mono codec, as two streams of tokens")
    caption_template: str | None = option(
        "caption for files without one, made from their other fields, also those of `describe`: '{genre} with {instrument}'",
        metavar="TEXT",
    )
    caption_from: str | None = option(
        "column, field of the .json or tag that is the caption of every file (default: the first of text, description and "
        "caption that is filled in)",
        metavar="COLUMN",
    )
    files_per_shard: int = option(
        "files in a shard, each of which one process makes; use fewer if files last hours",
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

    def caption_rule(self) -> CaptionRule | None:
        """Return how captions are made, None to take them as found; raises `UserError` for a bad template."""
        template = None if self.caption_template is None else CaptionTemplate(self.caption_template)
        return template if self.caption_from is None else CaptionColumn(self.caption_from, template)


add_arguments = declare(TokenizeRequest)


def run(request: TokenizeRequest) -> None:
    """Tokenize every usable file that an earlier run has not tokenized.

    Raises:
        UserError: Nothing usable, a folder in use or begun with other settings, no room, or a bad file with --strict.
    """
    from magnet_train.codecs import load_codec

    ranks = read_ranks()
    template = request.caption_rule()
    with Console(stderr=True).status(f"looking through {escape(request.audio)}"):
        listing = find_audio(local_source(request.audio))
        sources = take_stats(listing.files)
        summary = summarize_sources(request.audio, listing, template)
    if ranks.rank == 0:
        _print_described(listing.files)
    device = request.chosen_device(ranks.local_rank)
    codec = load_codec(request.codec, device, request.codebooks, request.stereo)
    if request.overwrite:
        if ranks.ranks > 1:
            raise UserError(f"--overwrite is for one process; remove {request.out} before starting several.")
        clear_shards(request.out)
    job = ShardJob(request.out, codec.info, _settings(request, codec), sources, request.files_per_shard)
    before, grows = job.complete, job.is_usable
    if not before:
        if ranks.rank == 0:
            print(summary, flush=True)
            if grows:
                print(f"{request.out}: {job.plan}", flush=True)
        try:
            _work(job, codec, template, request, ranks)
        except KeyboardInterrupt:
            print("stopped; the same command resumes with the next file", file=sys.stderr)
            raise
    finished = _finish(job, template, request.strict)
    if finished is None:
        print(
            f"rank {ranks.rank} of {ranks.ranks} has done its share; {request.out} is complete once every rank has"
        )
    else:
        outcome = "was finished before:" if before else "now has"
        _print_summary(request.out, finished, outcome if grows else None)


def _print_described(files: Sequence[AudioFile]) -> None:
    whole = [file for file in files if file.problem is None and file.is_whole]
    if described := sum(has_description(file.path) for file in whole):
        print(f"{described} of {count(len(files), 'file')} have fields of `describe` in a {SUFFIX}")


def _settings(request: TokenizeRequest, codec: Codec) -> dict[str, Any]:
    """Return the settings that the bytes of the shards depend on, beside codec and files."""
    from magnet_train.codecs.chunked import CHUNK_SECONDS

    return {
        "caption_template": request.caption_template,
        "chunk_seconds": CHUNK_SECONDS,
        "context_seconds": codec.context_seconds,
        **({"rescale": True} if request.rescale else {}),
        **({"caption_from": request.caption_from} if request.caption_from is not None else {}),
    }


def _work(
    job: ShardJob,
    codec: Codec,
    template: CaptionRule | None,
    request: TokenizeRequest,
    ranks: Ranks,
) -> None:
    """Do this process's share of the job, or the rest of it."""
    from magnet_train.cli.clip_reading import read_clips

    units = list(job.units(ranks.rank, ranks.ranks))
    share = [file for _, mine in units for file in mine]
    if not share:
        return
    with TokenizeProgress(share, codec.sample_rate, ranks) as progress:
        for unit, mine in units:
            if unit.finished:
                progress.skip(len(mine))
                continue
            with unit:
                done = len(unit.outcomes)
                progress.skip(done)
                clips = read_clips(mine[done:], codec, template, request.rescale, request.workers)
                _fill(unit, clips, codec, request.strict, progress)


def _fill(
    unit: WorkUnit, clips: Iterable[Clip], codec: Codec, strict: bool, progress: TokenizeProgress
) -> None:
    """Tokenize the rest of a unit; raises `UserError` for an unusable file in strict mode, or without room on disk."""
    from magnet_train.cli.clip_reading import Unusable
    from magnet_train.codecs.chunked import encode_blocks

    for clip in clips:
        label = clip.file.label
        try:
            tokens = encode_blocks(codec, progress.count_audio(clip.blocks()))
            shortfall = clip.audio.shortfall
            if strict and shortfall is not None:
                raise Unusable(f"partial: {shortfall}")
        except Unusable as reason:
            if strict:
                raise unusable(label, str(reason)) from reason
            unit.leave_out(label, str(reason))
        else:
            array, digest = tokens.cpu().numpy(), clip.audio.digest
            unit.add(label, clip.file.key, array, clip.metadata, digest, shortfall)
        progress.finish()
    unit.finish()


def _finish(job: ShardJob, template: CaptionRule | None, strict: bool) -> Finished | None:
    """Put the shards in their places; where no file was usable, print a few reasons before the error."""
    try:
        with Console(stderr=True).status("putting the shards together"):
            return job.finish(functools.partial(_caption, template), strict=strict)
    except NothingUsableError as error:
        if len(job.sources) > 1:  # else the error names the only one
            for file in few_of(error.left_out):
                print(printable(f"{file.path}: {file.reason}"), file=sys.stderr)
        _print_remedy(error.left_out)
        raise


def _caption(template: CaptionRule | None, file: AudioFile) -> dict[str, Any] | str:
    """Return the metadata of a file, or the reason why it has none."""
    from magnet_train.cli.clip_reading import Unusable, read_metadata

    try:
        return read_metadata(file, template)
    except Unusable as reason:
        return str(reason)


def _print_summary(folder: Path, finished: Finished, outcome: str | None) -> None:
    manifest = finished.manifest
    clips, shards = count(manifest.samples, "clip"), count(len(manifest.shards), "shard")
    sizes = f"{clips} ({duration(manifest.seconds)}) in {shards}"
    print(f"{folder} {outcome} {sizes}" if outcome else f"wrote {sizes} to {folder}")
    if finished.left_out:
        files = count(len(finished.left_out), "file")
        print(f"left out {files} ({summarize(finished.left_out)}); reasons in {folder / REPORT_NAME}")
    if finished.partial:
        files = count(len(finished.partial), "file")
        print(f"read {files} in part only; how much of each is in {folder / REPORT_NAME}")
    _print_remedy(finished.left_out)


def _print_remedy(left_out: Sequence[Skipped]) -> None:
    """Print how to read or convert the audio formats that are not read."""
    for suffix, number in suffixes_not_read(file.reason for file in left_out):
        av = f"{NEEDS_AV}; " if f".{suffix}" in AV_SUFFIXES else ""
        print(
            f"{count(number, suffix + ' file')} not read; {av}to convert all in a folder: "
            f'for f in *.{suffix}; do ffmpeg -i "$f" "${{f%.{suffix}}}.flac"; done'
        )
