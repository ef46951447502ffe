"""`magnet-train benchmark loader`: measure, print and write."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, track

from datamodules.shards.manifest import read_manifest
from datamodules.shards.remote import ShardCache
from harness.loader_measurements import measure_pair, measure_plain_read, measure_workers
from harness.loader_opening import measure_opening
from harness.loader_pipelines import OTHERS, LoaderConfig, first_shards, make_shards, require_same_clips
from harness.report import Report, make_table, require_at_least
from harness.timing import Row, machine
from magnet_train.cli.console import count
from magnet_train.errors import UserError

_OPENED_CLIPS = (10_000, 1_000_000)
_OPENED_FRAMES = 50
_FRAME_RATE = 50.0


class _Case(NamedTuple):
    """Shards to measure."""

    name: str  # in the report
    title: str  # in the tables
    folder: Path  # in errors
    config: LoaderConfig


def run(args: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        UserError: Options out of range, shards that are missing or damaged, or the sides disagree.
    """
    require_at_least(1, args, ("clips", "frames", "batch", "rounds"))
    require_at_least(0, args, ("workers",))
    torch.set_num_threads(1)
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "webdataset", "lightning")}
    facts = {**machine(torch.device("cpu")), "cores": os.cpu_count(), **versions}
    report = Report("loader", facts, args.out)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="magnet-train-") as scratch:
        work = args.work or Path(scratch)
        cases = [_own(args, name, Path(scratch)) for name in args.shards] or [_made_up(args, work)]
        report.print_machine(console)  # after the folders have been found
        for case in cases:
            _measure(case, args, report)
            _print(console, case.title, report.content["cases"][-1])
        if args.million:
            _measure_openings(work, report, console)


def _made_up(args: argparse.Namespace, work: Path) -> _Case:
    _require_a_batch(args.clips, f"--clips {args.clips}", args.batch)
    folder = _make_clips(work, args.clips, args.frames)
    config = LoaderConfig(folder, args.frames, args.batch[0])
    return _Case("made up", count(args.clips, "made-up clip"), folder, config)


def _make_clips(work: Path, clips: int, frames: int) -> Path:
    def bar(numbers: range) -> Iterable[int]:
        text = f"writing {clips:,} made-up clips"
        return track(numbers, text, console=Console(stderr=True), transient=True)

    return make_shards(work / f"clips_{clips}x{frames}", clips, frames, bar)


def _own(args: argparse.Namespace, name: str, scratch: Path) -> _Case:
    folder = ShardCache().local_folder(name)
    links = Path(tempfile.mkdtemp(dir=scratch)) / "shards"
    config = LoaderConfig(first_shards(folder, args.clips, links), args.frames, args.batch[0])
    manifest, whole = config.manifest, read_manifest(folder)
    _require_a_batch(manifest.samples, f"{name} with {count(manifest.samples, 'clip')}", args.batch)
    title = f"{name}, {count(manifest.samples, 'clip')}"
    if len(manifest.shards) < len(whole.shards):
        title += f" of its first {len(manifest.shards)} of {count(len(whole.shards), 'shard')}"
    return _Case(name, title, folder, config)


def _require_a_batch(clips: int, where: str, batches: list[int]) -> None:
    if clips < max(batches):
        raise UserError(f"{where} is less than a batch of {max(batches)}; give --batch {clips} or less.")


def _measure(case: _Case, args: argparse.Namespace, report: Report) -> None:
    """Fill a case of the report, measurement by measurement."""
    config = case.config
    setting = {
        "shards": case.name,
        "clips": config.manifest.samples,
        "n_q": config.manifest.codec.n_q,
        "frames": config.frames,
        "codes_per_clip": config.codes_per_clip,
    }
    numbers: dict[str, Any] = {"setting": setting}
    report.start_case(numbers)
    jobs = list(_jobs(config, args))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Refreshed by hand: a drawing thread would count towards the measured CPU time.
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
    with bar, _folder_in_errors(config.folder, case.folder):
        task = bar.add_task("comparing keys, captions and tokens", total=1 + len(jobs))
        bar.refresh()
        require_same_clips(config)
        numbers["same_clips"] = True
        for description, section, measure in jobs:
            bar.update(task, advance=1, description=description, refresh=True)
            numbers.setdefault(section, []).append(measure())
            report.save()


def _jobs(config: LoaderConfig, args: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Yield each measurement: its description, its section of the case, and its function."""
    for batch in args.batch:
        for other in OTHERS:
            pair = partial(measure_pair, replace(config, batch=batch), other, args.rounds)
            yield f"{other}, batch {batch}", "ratios", pair
    yield "plain reading", "plain_read", partial(measure_plain_read, config, args.rounds)
    for workers in args.workers:
        yield count(workers, "worker"), "workers", partial(measure_workers, config, workers, args.rounds)


@contextmanager
def _folder_in_errors(used: Path, known: Path) -> Iterator[None]:
    """Let errors name the user's folder instead of the temporary one with links to its first shards."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(used), str(known))) from error


def _measure_openings(work: Path, report: Report, console: Console) -> None:
    openings = report.content["opening"] = []
    for clips in _OPENED_CLIPS:
        folder = _make_clips(work, clips, _OPENED_FRAMES)
        opening = measure_opening(folder, _OPENED_FRAMES / _FRAME_RATE)
        openings.append({"clips": clips, **opening})
        report.save()
        console.print(
            f"{clips:,} clips opened in {opening['opened_s']:.3f} s, first batch of 2 workers "
            f"{opening['first_batch_s']:.2f} s later, {opening['worker_own_mb']:.1f} MB of unshared memory of a worker",
            highlight=False,
            soft_wrap=True,
        )


def _print(console: Console, title: str, numbers: dict[str, Any]) -> None:
    setting = numbers["setting"]
    heading = f"{title}, K {setting['n_q']}, T {setting['frames']}: clips/s of CPU time without workers"
    table = make_table(heading, "against", "B", "theirs", "ours", "ratio", "low", "high")
    for row in numbers["ratios"]:
        rates = [f"{row[name]:,.0f}" for name in ("other_clips_per_s", "ours_clips_per_s")]
        ratios = [f"{row[name]:.2f}" for name in ("ratio", "low", "high")]
        table.add_row(row["other"], str(row["batch"]), *rates, *ratios)
    console.print(table)
    (plain,) = numbers["plain_read"]
    console.print(
        f"ours, B {plain['batch']}: {plain['ours_codes_per_s']:,.0f} codes/s, {plain['share']:.2%} of "
        f"{plain['read_codes_per_s']:,.0f} of plain reading ({plain['low']:.2%} to {plain['high']:.2%})",
        highlight=False,
        soft_wrap=True,
    )
    if workers := numbers.get("workers"):
        _print_workers(console, workers)


def _print_workers(console: Console, rows: list[Row]) -> None:
    heading = f"ours, B {rows[0]['batch']}: clips/s by the wall clock, us of CPU time a clip"
    columns = ("clips/s", "low", "high", "codes/s", "us, this process", "us, workers")
    table = make_table(heading, "workers", *columns)
    for row in rows:
        rates = [f"{row[name]:,.0f}" for name in ("clips_per_s", "low", "high", "codes_per_s")]
        worked = row["workers_us_per_clip"]
        spent = [f"{row['main_us_per_clip']:.1f}", "" if worked is None else f"{worked:.1f}"]
        table.add_row(str(row["workers"]), *rates, *spent)
    console.print(table)
