"""Clips and codes a second: in turns with webdataset, against plain reading, and with workers.

Without workers the clock is the CPU time of this process and the two sides take turns, so that what else runs on
the machine weighs on both alike. With workers it is the wall clock.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import psutil

from harness.loader_pipelines import OTHERS, BenchmarkConfig, Clips, ours

CLIPS_IN_A_TURN = 2048
_WARM_UP = 4  # batches of each worker: more than it has ready before it is asked
_CHUNK = 2**20  # bytes read at once

Row: TypeAlias = dict[str, Any]


def measure_pair(setting: BenchmarkConfig, other: str, rounds: int, turn: int = CLIPS_IN_A_TURN) -> Row:
    """Let our loader and another way take turns of about `turn` clips in one process.

    Returns:
        Medians of both sides in clips a second of CPU time; `ratio` is the median over rounds of ours over the
        other, `low` and `high` its extremes.
    """
    sides = {"ours": ours(setting), "other": OTHERS[other](setting)}
    for side in sides.values():
        next(side)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 else reversed(sides):
            rates[name].append(_rate(sides[name], setting, turn, time.process_time))
    ratios = [mine / its for mine, its in zip(rates["ours"], rates["other"], strict=True)]
    return {
        "other": other,
        "batch": setting.batch,
        "other_clips_per_s": statistics.median(rates["other"]),
        "ours_clips_per_s": statistics.median(rates["ours"]),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "rounds": rounds,
    }


def measure_plain_read(setting: BenchmarkConfig, rounds: int, turn: int = CLIPS_IN_A_TURN) -> Row:
    """Take turns with reading the same files from front to back and doing nothing with them.

    Returns:
        Codes a second of CPU time of both, and `share`, ours as a part of plain reading, 0..1.
    """
    side = ours(setting)
    next(side)
    codes = setting.manifest.codec.n_q * sum(shard.frames for shard in setting.manifest.shards)
    mine, plain = [], []
    for _ in range(rounds):
        start = time.process_time()
        _read_files(setting)
        plain.append(codes / (time.process_time() - start))
        mine.append(_rate(side, setting, turn, time.process_time) * setting.codes_per_clip)
    shares = [rate / limit for rate, limit in zip(mine, plain, strict=True)]
    return {
        "batch": setting.batch,
        "read_codes_per_s": statistics.median(plain),
        "ours_codes_per_s": statistics.median(mine),
        "share": statistics.median(shares),
        "low": min(shares),
        "high": max(shares),
        "rounds": rounds,
    }


def measure_workers(setting: BenchmarkConfig, workers: int, rounds: int, turn: int = CLIPS_IN_A_TURN) -> Row:
    """Measure our loader with processes of its own.

    Returns:
        Clips and codes a second by the wall clock, medians over rounds, `low` and `high` of the clips; and the
        microseconds of CPU time that a clip costs this process, and all workers together.
    """
    others = multiprocessing.active_children()
    side = ours(setting, workers)
    with warnings.catch_warnings():
        # More workers than cores are a row too.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        for _ in itertools.islice(side, 1 + _WARM_UP * workers):
            pass
    processes = [child for child in multiprocessing.active_children() if child not in others]
    before = _cpu_seconds(processes)
    start = time.process_time()
    rates = [_rate(side, setting, turn, time.perf_counter) for _ in range(rounds)]
    spent = time.process_time() - start
    worked = _cpu_seconds(processes) - before
    clips = rounds * _batches(setting, turn) * setting.batch
    return {
        "workers": workers,
        "batch": setting.batch,
        "clips_per_s": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "codes_per_s": statistics.median(rates) * setting.codes_per_clip,
        "main_us_per_clip": 1e6 * spent / clips,
        "workers_us_per_clip": 1e6 * worked / clips if processes else None,
        "rounds": rounds,
    }


def _rate(side: Iterator[Clips], setting: BenchmarkConfig, turn: int, clock: Callable[[], float]) -> float:
    """Return clips a second over a turn."""
    start = clock()
    clips = sum(len(batch.keys) for batch in itertools.islice(side, _batches(setting, turn)))
    return clips / (clock() - start)


def _batches(setting: BenchmarkConfig, turn: int) -> int:
    return max(1, turn // setting.batch)


def _read_files(setting: BenchmarkConfig) -> None:
    for tar in setting.tars:
        with tar.open("rb", buffering=0) as file:
            while file.read(_CHUNK):
                pass


def _cpu_seconds(processes: Sequence[multiprocessing.process.BaseProcess]) -> float:
    return sum(sum(psutil.Process(process.pid).cpu_times()[:2]) for process in processes)
