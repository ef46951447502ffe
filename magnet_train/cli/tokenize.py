"""Turn captioned audio into shards of tokens; files that cannot be used are listed in report.jsonl."""

# Shapes: audio float [channels, samples]; tokens int64 [K, T].

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

    from datamodules.audio_files import AudioFile
    from datamodules.manifest import Manifest
    from magnet_train.codecs import Codec

REPORT_NAME = "report.jsonl"
_SILENCE = 1e-4  # largest sample, -80 dB of full scale
_MEGABYTE = 2**20


class Unusable(Exception):  # noqa: N818  # a verdict on a file, not an error of the program
    """Why a file is left out: a kind ("silent") and, after a colon, details."""


@dataclass
class Report:
    """Files that were left out, with reasons.

    Args:
        strict: Stop at the first of them.
    """

    strict: bool

    def __post_init__(self) -> None:
        self.lines: list[dict[str, str]] = []

    def add(self, file: AudioFile, reason: str) -> None:
        """Note a file.

        Raises:
            UserError: In strict mode.
        """
        if self.strict:
            raise UserError(
                f"{file.path} cannot be used ({reason}); mend or remove it, or leave out --strict."
            )
        self.lines.append({"path": str(file.path), "reason": reason})

    def summary(self) -> str:
        """Count the reasons: "2 silent, 1 unreadable"."""
        kinds = Counter(line["reason"].partition(":")[0] for line in self.lines)
        return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())

    def write(self, folder: Path) -> None:
        """Write `report.jsonl`, one line for each file, empty if none was left out."""
        from datamodules.atomic import write_atomically

        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines]
        write_atomically(folder / REPORT_NAME, "".join(lines).encode("utf-8", "replace"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be set on the command line."""
    parser.add_argument(
        "--audio",
        type=Path,
        required=True,
        metavar="DIR|FILE.jsonl",
        help="folder of wav, flac, ogg and mp3, searched recursively, with a .json (text, description or "
        "caption) or .txt beside each file; or a .jsonl with path, text and other fields on each line",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the shards")
    parser.add_argument(
        "--codec",
        default="facebook/encodec_32khz",
        metavar="NAME",
        help="a hub id or folder of an EnCodec, encodec_24khz, encodec_48khz, or quickstart, the small codec "
        "in this package (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_at_least_one,
        default=2,
        metavar="N",
        help="threads that read and resample (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-size",
        type=_at_least_one,
        default=64,
        metavar="MB",
        help="megabytes after which a new shard begins (default: %(default)s)",
    )
    parser.add_argument(
        "--device", help="where the codec runs: cpu, cuda, ... (default: cuda if there is one)"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be used")


def run(args: argparse.Namespace) -> None:
    """Tokenize every usable file.

    Raises:
        UserError: Nothing usable, an output folder that is in use, no room on disk, or any bad file with
            --strict; nothing is left behind.
    """
    from datamodules.audio_files import list_audio
    from datamodules.writer import ShardWriter
    from magnet_train.codecs import load_codec

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"{args.out} is not an empty folder; give --out a new one or remove it.")
    files = list_audio(args.audio)
    report = Report(args.strict)
    usable = []
    for file in files:
        if file.problem is None:
            usable.append(file)
        else:
            report.add(file, file.problem)
    if not usable:
        raise UserError(_explain_nothing(args.audio, report))
    device = args.device or _best_device()
    codec = load_codec(args.codec, device=device)
    with ShardWriter(args.out, codec.info, shard_bytes=args.shard_size * _MEGABYTE) as writer:
        for file, tokens in _tokenize(codec, usable, device, args.workers, report):
            writer.add(file.key, tokens.cpu().numpy(), file.metadata)
        if not writer.samples:
            raise UserError(_explain_nothing(args.audio, report))
        manifest = writer.close()
    report.write(args.out)
    _print_summary(args.out, manifest, report)


def _tokenize(
    codec: Codec, files: list[AudioFile], device: str, workers: int, report: Report
) -> Iterator[tuple[AudioFile, Tensor]]:
    """Yield each usable file with its tokens [K, T], in the order of `files`; others go to the report."""
    from magnet_train.long_audio import encode_audio

    def read(file: AudioFile) -> Tensor:
        return read_usable(file.path, codec)

    seconds = 0.0
    started = time.monotonic()
    with _progress() as progress:
        task = progress.add_task("tokenize", total=len(files), rate="")
        for file, audio in _read_ahead(files, read, workers):
            try:
                samples = audio.result()
            except Unusable as reason:
                report.add(file, str(reason))
            else:
                tokens = encode_audio(codec, samples.to(device))
                seconds += samples.shape[-1] / codec.sample_rate
                yield file, tokens
            hours_a_minute = seconds / 60 / max(time.monotonic() - started, 1e-9)
            progress.update(task, advance=1, rate=f"{hours_a_minute:.2f} h of audio/min")


def read_usable(path: Path, codec: Codec) -> Tensor:
    """Read a file at the codec's rate and channels, float [channels, samples].

    Raises:
        Unusable: It cannot be read, is silent or holds less than one token frame.
    """
    from magnet_train.audio import read_audio
    from magnet_train.long_audio import samples_per_frame

    try:
        audio = read_audio(path, codec.sample_rate, codec.channels)
    except UserError as error:
        raise Unusable(f"unreadable: {error}") from error
    if audio.shape[-1] < samples_per_frame(codec):
        raise Unusable(f"too short: {audio.shape[-1]} samples are less than one frame")
    if not bool(audio.isfinite().all()):
        raise Unusable("unreadable: it holds samples that are no numbers (NaN or infinite)")
    if float(audio.abs().max()) < _SILENCE:
        raise Unusable("silent")
    return audio


def _read_ahead(
    files: Iterable[AudioFile], read: Callable[[AudioFile], Tensor], workers: int
) -> Iterator[tuple[AudioFile, Future[Tensor]]]:
    """Read files in threads, a few ahead of the one that is asked for, and give them in order."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[AudioFile, Future[Tensor]]] = deque()
    try:
        for file in files:
            waiting.append((file, pool.submit(read, file)))
            if len(waiting) > workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files  {task.fields[rate]}  left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _print_summary(folder: Path, manifest: Manifest, report: Report) -> None:
    hours = manifest.seconds / 3600
    length = f"{hours:.2f} h" if hours >= 0.1 else f"{manifest.seconds:.1f} s"
    print(f"wrote {manifest.samples} clips ({length}) in {len(manifest.shards)} shards to {folder}")
    if report.lines:
        print(f"left out {len(report.lines)} files ({report.summary()}); reasons in {folder / REPORT_NAME}")


def _explain_nothing(source: Path, report: Report) -> str:
    first = report.lines[0]
    return (
        f"none of the {len(report.lines)} files in {source} can be used ({report.summary()}), the first "
        f"{first['path']} because: {first['reason']}; add captioned, audible files."
    )


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number
