"""Time two versions of the same work, taking turns, so that whatever slows the machine slows both."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

GEMM_SIZE = {"cpu": 1024, "cuda": 8192}  # rows of the square matrices whose product stands for the peak

Work = Callable[[], object]


class Clock:
    """Seconds of work: of this process's CPU time, or between two events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def warms_up(self) -> bool:
        """Whether first runs are slower than others by more than a CPU's, for compiling or loading kernels."""
        return self.device.type == "cuda"

    def mark(self) -> Any:
        """Return this moment, for `between`; nothing is waited for."""
        if self.device.type != "cuda":
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Return the seconds from mark to mark, once both have passed."""
        if isinstance(begin, torch.cuda.Event):
            return float(begin.elapsed_time(end)) / 1000
        return float(end - begin)

    def time(self, work: Work) -> float:
        """Run `work` to its end; seconds."""
        self._wait()
        begin = self.mark()
        work()
        end = self.mark()
        self._wait()
        return self.between(begin, end)

    def peak_bytes(self, work: Work) -> int | None:
        """Run `work` and return the most memory held meanwhile; None, and no run, where it cannot be measured."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Pair:
    """Seconds of every round, one entry each."""

    naive: list[float]
    ours: list[float]

    @property
    def ratios(self) -> list[float]:
        return [naive / ours for naive, ours in zip(self.naive, self.ours, strict=True)]

    def summary(self) -> dict[str, float | int]:
        """Medians in ms; the ratio is the median over rounds, `low` and `high` its extremes."""
        return {
            "naive_ms": 1000 * statistics.median(self.naive),
            "ours_ms": 1000 * statistics.median(self.ours),
            "ratio": statistics.median(self.ratios),
            "low": min(self.ratios),
            "high": max(self.ratios),
            "rounds": len(self.ratios),
        }


def time_pair(clock: Clock, naive: Work, ours: Work, rounds: int, warm_up: int = 1) -> Pair:
    """Run both in turns, naive first in even rounds and second in odd ones."""
    for _ in range(warm_up):
        naive()
        ours()
    pair = Pair([], [])
    for index in range(rounds):
        turns = [(pair.naive, naive), (pair.ours, ours)]
        for seconds, work in turns if index % 2 == 0 else reversed(turns):
            seconds.append(clock.time(work))
    return pair


def gemm_peak(clock: Clock, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, here and now: the best of five."""
    size = GEMM_SIZE.get(clock.device.type, 1024)
    a = torch.randn(size, size, device=clock.device, dtype=dtype)
    torch.mm(a, a)
    return 2 * size**3 / min(clock.time(lambda: torch.mm(a, a)) for _ in range(5))


def machine(device: torch.device) -> dict[str, Any]:
    """Say what ran the benchmark."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "clock": "CUDA events" if device.type == "cuda" else "CPU time of the process",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    with suppress(OSError, ValueError):  # not everywhere
        facts["load_average"] = float(Path("/proc/loadavg").read_text().split()[0])
    return facts


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
