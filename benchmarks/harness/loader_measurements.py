"""Clips and codes a second: in turns with webdataset, against plain reading, and with workers.

Without workers the clock is the CPU time of this process and both sides take turns, so that other load on the
machine slows both alike. With workers it is the wall clock.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import psutil

from harness.loader_pipelines import OTHERS, Clips, LoaderConfig, ours
from harness.timing import Row, spread

CLIPS_IN_A_TURN = 2048
_WARM_UP = 4  # batches of each worker: more than it prefetches
_CHUNK = 2**20  # bytes read at once


def measure_pair(config: LoaderConfig, other: str, rounds: int, turn: int = CLIPS_IN_A_TURN) -> Row:
    """Let our loader and another one take turns of about `turn` clips in one process.

    Returns:
        Medians of both sides in clips a second of CPU time; `ratio` is the median over rounds of ours over the
        other, `low` and `high` its extremes.
    """
    sides = {"ours": ours(config), "other": OTHERS[other](config)}
    for side in sides.values():
        next(side)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 else reversed(sides):
            rates[name].append(_rate(sides[name], config, turn, time.process_time))
    return {
        "other": other,
        "batch": config.batch,
        "other_clips_per_s": statistics.median(rates["other"]),
        "ours_clips_per_s": statistics.median(rates["ours"]),
        **spread("ratio", [mine / theirs for mine, theirs in zip(*rates.values(), strict=True)]),
    }


def measure_plain_read(config: LoaderConfig, rounds: int, turn: int = CLIPS_IN_A_TURN) -> Row:
    """Take turns with reading the same files from front to back without decoding.

    Returns:
        Codes a second of CPU time of both, and `share`, ours over plain reading, 0..1.
    """
    side = ours(config)
    next(side)
    codes = config.manifest.codec.n_q * sum(shard.frames for shard in config.manifest.shards)
    mine, plain = [], []
    for _ in range(rounds):
        start = time.process_time()
        _read_files(config)
        plain.append(codes / (time.process_time() - start))
        mine.append(_rate(side, config, turn, time.process_time) * config.codes_per_clip)
    return {
        "batch": config.batch,
        "read_codes_per_s": statistics.median(plain),
        "ours_codes_per_s": statistics.median(mine),
        **spread("share", [rate / limit for rate, limit in zip(mine, plain, strict=True)]),
    }


def measure_workers(config: LoaderConfig, workers: int, rounds: int, turn: int = CLIPS_IN_A_TURN) -> Row:
    """Measure our loader with worker processes.

    Returns:
        Clips and codes a second by the wall clock, medians over rounds, `low` and `high` of the clips; and the
        CPU time of a clip in this process, and in all workers together (us).
    """
    others = multiprocessing.active_children()
    side = ours(config, workers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
        for _ in itertools.islice(side, 1 + _WARM_UP * workers):
            pass
    processes = [child for child in multiprocessing.active_children() if child not in others]
    before = _cpu_seconds(processes)
    start = time.process_time()
    rates = [_rate(side, config, turn, time.perf_counter) for _ in range(rounds)]
    spent = time.process_time() - start
    worked = _cpu_seconds(processes) - before
    clips = rounds * _batches(config, turn) * config.batch
    return {
        "workers": workers,
        "batch": config.batch,
        **spread("clips_per_s", rates),
        "codes_per_s": statistics.median(rates) * config.codes_per_clip,
        "main_us_per_clip": 1e6 * spent / clips,
        "workers_us_per_clip": 1e6 * worked / clips if processes else None,
    }


def _rate(side: Iterator[Clips], config: LoaderConfig, turn: int, clock: Callable[[], float]) -> float:
    """Return clips a second over a turn."""
    start = clock()
    clips = sum(len(batch.keys) for batch in itertools.islice(side, _batches(config, turn)))
    return clips / (clock() - start)


def _batches(config: LoaderConfig, turn: int) -> int:
    return max(1, turn // config.batch)


def _read_files(config: LoaderConfig) -> None:
    for tar in config.tars:
        with tar.open("rb", buffering=0) as file:
            while file.read(_CHUNK):
                pass


def _cpu_seconds(processes: Sequence[multiprocessing.process.BaseProcess]) -> float:
    return sum(sum(psutil.Process(process.pid).cpu_times()[:2]) for process in processes)
