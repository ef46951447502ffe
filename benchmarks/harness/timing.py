"""Time two versions of the same work in turns, so that other load on the machine slows both alike."""

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

GEMM_SIZE = {"cpu": 1024, "cuda": 8192}  # rows of the square matrices whose product measures the peak

Work = Callable[[], object]
Row = dict[str, Any]  # a row of the table and of the JSON


class Clock:
    """Seconds of work: CPU time of this process, or time between two events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"

    def mark(self) -> Any:
        """Return a time stamp for `between`, without waiting for the device."""
        if not self.on_gpu:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Return the seconds between two marks that the device has passed."""
        return float(begin.elapsed_time(end)) / 1000 if self.on_gpu else float(end - begin)

    def time(self, work: Work) -> float:
        """Run `work` to its end, and return its seconds."""
        self._wait()
        begin = self.mark()
        work()
        end = self.mark()
        self._wait()
        return self.between(begin, end)

    def peak_bytes(self, work: Work) -> int | None:
        """Run `work` on a GPU, and return its peak memory; on a CPU return None without running it."""
        if not self.on_gpu:
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device)

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Pair:
    """Seconds of both versions, one entry a round."""

    naive: list[float]
    ours: list[float]

    def summary(self) -> dict[str, float | int]:
        """Medians in ms; the ratio is the median over rounds of naive over ours, `low` and `high` its extremes."""
        ratios = [naive / ours for naive, ours in zip(self.naive, self.ours, strict=True)]
        return {
            "naive_ms": 1000 * statistics.median(self.naive),
            "ours_ms": 1000 * statistics.median(self.ours),
            **spread("ratio", ratios),
        }


def spread(name: str, rounds: list[float]) -> dict[str, float | int]:
    """Return the median over rounds under `name`, with its extremes `low` and `high`."""
    return {
        name: statistics.median(rounds),
        "low": min(rounds),
        "high": max(rounds),
        "rounds": len(rounds),
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
    """Return the FLOP/s of a large square matrix product on this device, the best of five."""
    size = GEMM_SIZE.get(clock.device.type, 1024)
    a = torch.randn(size, size, device=clock.device, dtype=dtype)
    torch.mm(a, a)
    return 2 * size**3 / min(clock.time(lambda: torch.mm(a, a)) for _ in range(5))


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the hardware and the versions."""
    on_gpu = device.type == "cuda"
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "clock": "CUDA events" if on_gpu else "CPU time of the process",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    with suppress(OSError, ValueError):  # Linux only
        facts["load_average"] = float(Path("/proc/loadavg").read_text().split()[0])
    return facts


def cpu_name() -> str:
    """Return the model of the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
