"""Measure the data loader side by side with webdataset on the same shards; a ratio is printed only if both agree.

Ours reads in shuffled order, checks every token and throws the dice for the masks; webdataset reads from front
to back, decoding as its documentation says or by hand. Ratios are of CPU time in one process without workers,
both sides in turns. With workers, clips/s are by the wall clock.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from magnet_train.cli.console import count
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from harness.loader_measurements import Row
    from harness.loader_pipelines import BenchmarkConfig
    from harness.report import Report

_OPENED_CLIPS = (10_000, 1_000_000)
_OPENED_FRAMES = 50
_FRAME_RATE = 50.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train benchmark loader`."""
    parser.usage = "%(prog)s [SHARDS ...] [options]"
    parser.add_argument(
        "shards",
        nargs="*",
        metavar="SHARDS",
        help="folders of your own tokens, each measured by itself; hf://, s3:// and https:// are copied to the "
        "cache first (default: made-up clips)",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=8192,
        metavar="N",
        help="made-up clips to write; of SHARDS, the first shards that hold so many are used "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=500,
        metavar="T",
        help="length of made-up clips and of the rows of a batch, 50 frames a second; longer clips of SHARDS are "
        "cropped and shorter ones padded (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[72, 8],
        metavar="B",
        help="clips in a batch; plain reading and workers are measured with the first (default: 72 8)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="*",
        default=[0, 1, 2, 4],
        metavar="N",
        help="loader processes, one row for each number (default: 0 1 2 4)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=9,
        metavar="N",
        help="turns of each side, about 2048 clips each (default: %(default)s)",
    )
    parser.add_argument(
        "--million",
        action="store_true",
        help="also open a million clips of 50 frames, which takes 3 GB of disk and some minutes to write",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where made-up clips are kept for the next time (default: a temporary folder)",
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        UserError: Options that do not fit, shards that are missing or damaged, or the sides disagree.
    """
    import torch
    from rich.console import Console

    from harness.report import Report, require_at_least

    require_at_least(1, args, ("clips", "frames", "batch", "rounds"))
    require_at_least(0, args, ("workers",))
    torch.set_num_threads(1)
    report = Report("loader", _machine(), args.out)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="magnet-train-") as scratch:
        made_up = args.work or Path(scratch)
        cases = [_own(args, name, Path(scratch)) for name in args.shards] or [_made_up(args, made_up)]
        console.print(report.machine_line, highlight=False)  # not before the folders are known to be there
        for case in cases:
            _measure(case, args, report)
            _print(console, case.title, report.content["cases"][-1])
        if args.million:
            _measure_openings(made_up, report, console)


class _Case(NamedTuple):
    """What is measured, and how the user knows it."""

    name: str
    title: str
    folder: Path
    setting: BenchmarkConfig


def _made_up(args: argparse.Namespace, parent: Path) -> _Case:
    from harness.loader_pipelines import BenchmarkConfig

    _require_a_batch(args.clips, f"--clips {args.clips}", args.batch)
    folder = _make_clips(parent, args.clips, args.frames)
    return _Case(
        "made up",
        count(args.clips, "made-up clip"),
        folder,
        BenchmarkConfig(folder, args.frames, args.batch[0]),
    )


def _make_clips(parent: Path, clips: int, frames: int) -> Path:
    from rich.console import Console
    from rich.progress import track

    from harness.loader_shards import make_shards

    def bar(numbers: range) -> Iterable[int]:
        return track(
            numbers, f"writing {clips:,} made-up clips", console=Console(stderr=True), transient=True
        )

    return make_shards(parent / f"clips_{clips}x{frames}", clips, frames, bar)


def _own(args: argparse.Namespace, name: str, scratch: Path) -> _Case:
    from datamodules.shards.manifest import read_manifest
    from datamodules.shards.remote import ShardCache
    from harness.loader_pipelines import BenchmarkConfig
    from harness.loader_shards import first_shards

    folder = ShardCache().local_folder(name)
    links = Path(tempfile.mkdtemp(dir=scratch)) / "shards"
    setting = BenchmarkConfig(first_shards(folder, args.clips, links), args.frames, args.batch[0])
    manifest, whole = setting.manifest, read_manifest(folder)
    _require_a_batch(manifest.samples, f"{name} with {count(manifest.samples, 'clip')}", args.batch)
    title = f"{name}, {count(manifest.samples, 'clip')}"
    if len(manifest.shards) < len(whole.shards):
        title += f" of its first {len(manifest.shards)} of {count(len(whole.shards), 'shard')}"
    return _Case(name, title, folder, setting)


def _require_a_batch(clips: int, where: str, batches: list[int]) -> None:
    if clips < max(batches):
        raise UserError(f"{where} is less than a batch of {max(batches)}; give --batch {clips} or less.")


def _measure(case: _Case, args: argparse.Namespace, report: Report) -> None:
    """Fill a case of the report, measurement by measurement."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from harness.loader_pipelines import require_same_clips

    numbers: dict[str, Any] = {"setting": _describe(case)}
    report.start_case(numbers)
    jobs = list(_jobs(case.setting, args))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Refreshed by hand: a thread that draws would be in the CPU time that is measured.
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
    with bar, _called(case.setting.folder, case.folder):
        task = bar.add_task("comparing keys, captions and tokens", total=1 + len(jobs))
        bar.refresh()
        require_same_clips(case.setting)
        numbers["same_clips"] = True
        for doing, section, measure in jobs:
            bar.update(task, advance=1, description=doing, refresh=True)
            numbers.setdefault(section, []).append(measure())
            report.save()


def _jobs(setting: BenchmarkConfig, args: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Yield what is measured: words for the bar, section of the case, function."""
    from harness.loader_measurements import measure_pair, measure_plain_read, measure_workers
    from harness.loader_pipelines import OTHERS

    for batch in args.batch:
        for other in OTHERS:
            pair = partial(measure_pair, replace(setting, batch=batch), other, args.rounds)
            yield f"{other}, batch {batch}", "ratios", pair
    yield "plain reading", "plain_read", partial(measure_plain_read, setting, args.rounds)
    for workers in args.workers:
        yield count(workers, "worker"), "workers", partial(measure_workers, setting, workers, args.rounds)


@contextmanager
def _called(used: Path, known: Path) -> Iterator[None]:
    """Let errors name the user's folder, not the temporary one with links to its first shards."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(used), str(known))) from error


def _measure_openings(parent: Path, report: Report, console: Console) -> None:
    from harness.loader_opening import measure_opening

    openings = report.content["opening"] = []
    for clips in _OPENED_CLIPS:
        folder = _make_clips(parent, clips, _OPENED_FRAMES)
        opening = measure_opening(folder, _OPENED_FRAMES / _FRAME_RATE)
        openings.append({"clips": clips, **opening})
        report.save()
        console.print(
            f"{clips:,} clips opened in {opening['opened_s']:.3f} s, first batch of 2 workers "
            f"{opening['first_batch_s']:.2f} s later, {opening['worker_own_mb']:.1f} MB of memory of a worker's own",
            highlight=False,
            soft_wrap=True,
        )


def _describe(case: _Case) -> dict[str, Any]:
    setting = case.setting
    return {
        "shards": case.name,
        "clips": setting.manifest.samples,
        "n_q": setting.manifest.codec.n_q,
        "frames": setting.frames,
        "codes_per_clip": setting.codes_per_clip,
    }


def _machine() -> dict[str, Any]:
    import importlib.metadata
    import os

    import torch

    from harness.timing import machine

    versions = {name: importlib.metadata.version(name) for name in ("numpy", "webdataset", "lightning")}
    return {**machine(torch.device("cpu")), "cores": os.cpu_count(), **versions}


def _print(console: Console, title: str, numbers: dict[str, Any]) -> None:
    setting = numbers["setting"]
    sizes = f"K {setting['n_q']}, T {setting['frames']}"
    console.print(_ratios(f"{title}, {sizes}: clips/s of CPU time without workers", numbers["ratios"]))
    (plain,) = numbers["plain_read"]
    console.print(
        f"ours, B {plain['batch']}: {plain['ours_codes_per_s']:,.0f} codes/s, {plain['share']:.2%} of "
        f"{plain['read_codes_per_s']:,.0f} that pass when the files are only read ({plain['low']:.2%} to "
        f"{plain['high']:.2%})",
        highlight=False,
        soft_wrap=True,
    )
    if workers := numbers.get("workers"):
        console.print(
            _workers(
                f"ours, B {workers[0]['batch']}: clips/s by the wall clock, us of CPU time a clip", workers
            )
        )


def _ratios(title: str, rows: list[Row]) -> Table:
    table = _table(title, "beside", "B", "theirs", "ours", "ratio", "low", "high")
    for row in rows:
        rates = [f"{row[name]:,.0f}" for name in ("other_clips_per_s", "ours_clips_per_s")]
        ratios = [f"{row[name]:.2f}" for name in ("ratio", "low", "high")]
        table.add_row(row["other"], str(row["batch"]), *rates, *ratios)
    return table


def _workers(title: str, rows: list[Row]) -> Table:
    table = _table(title, "workers", "clips/s", "low", "high", "codes/s", "us here", "us in workers")
    for row in rows:
        rates = [f"{row[name]:,.0f}" for name in ("clips_per_s", "low", "high", "codes_per_s")]
        worked = row["workers_us_per_clip"]
        spent = [f"{row['main_us_per_clip']:.1f}", "" if worked is None else f"{worked:.1f}"]
        table.add_row(str(row["workers"]), *rates, *spent)
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
