"""Measure the loader against webdataset, in pairs on one core, and at a million clips.

    python benchmarks/loader.py --work runs/loader               # ratios and workers
    python benchmarks/loader.py --work runs/loader --million     # the index at a million clips as well

Every path delivers the same: tokens int64 [72, 4, 500] with captions and keys. Before anything is timed, all of
them have to give the same tokens and captions for the same keys. Ours reads in shuffled order over the whole set,
checks every token and throws the dice for the masks on top of that; webdataset reads from front to back.

Ratios are of CPU time in one process without workers, the two sides taking turns, so that what else runs on the
machine weighs on both alike. Clips a second with workers are by the clock.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import webdataset as wds

from datamodules.manifest import read_manifest
from datamodules.tokens import TokenDataModule
from datamodules.writer import ShardWriter
from magnet_train.tokens import CodecInfo

N_Q, FRAMES, CARD, FRAME_RATE = 4, 500, 2048, 50.0
BATCH, SMALL_BATCH = 72, 8  # that of configs/trainer/ddp8.yaml, and the default of a single device
NEEDED = 2900  # ten-second clips a second that eight H200 take, a computed bound
TARGETS = {"default_decode": 4.0, "tuned_decode": 2.0}
WORDS = ("slow", "warm", "piano", "soft strings", "brushed drums", "deep bass", "large hall", "a loop of")


class Clips(NamedTuple):
    """What a path delivers at a time: keys, captions and tokens int64 [B, K, T]."""

    keys: list[str]
    texts: list[str]
    tokens: torch.Tensor


def make_shards(folder: Path, clips: int, frames: int = FRAMES) -> Path:
    """Write made-up clips with captions and metadata, unless they are there already."""
    if (folder / "manifest.json").exists() and read_manifest(folder).samples == clips:
        return folder
    codec = CodecInfo("made up", "ab" * 32, 32000, 1, FRAME_RATE, N_Q, CARD)
    random = np.random.default_rng(0)
    with ShardWriter(folder, codec) as writer:
        for number in range(clips):
            text = " ".join(random.choice(WORDS, 10))
            metadata = {
                "text": text,
                "source": f"music/{number:07d}.flac",
                "genre": "ambient",
                "bpm": 90 + number % 60,
            }
            writer.add(f"{number:07d}", random.integers(0, CARD, (N_Q, frames)), metadata)
    return folder


def ours(folder: Path, batch: int = BATCH, workers: int = 0) -> Iterator[Clips]:
    """Read with this package, shuffled, for ever."""
    data = TokenDataModule(
        folder, val_shards=folder, segment_duration=FRAMES / FRAME_RATE, batch_size=batch, num_workers=workers
    )
    data.setup()
    for made in data.train_dataloader():
        yield Clips(made["key"], made["text"], made["tokens"])


def default_decode(folder: Path, batch: int = BATCH) -> Iterator[Clips]:
    """Read as webdataset's documentation does."""
    return _collated(_webdataset(folder).decode().to_tuple("__key__", "json", "npy"), batch)


def tuned_decode(folder: Path, batch: int = BATCH) -> Iterator[Clips]:
    """Read with webdataset and decode by hand: the header of the npy is skipped, not parsed."""
    return _collated(_webdataset(folder).map(_decode_by_hand), batch)


def _decode_by_hand(sample: dict[str, Any]) -> tuple[str, dict[str, Any], Any]:
    tokens = np.frombuffer(sample["npy"], dtype="<i2", offset=128).reshape(N_Q, FRAMES)
    return sample["__key__"], json.loads(sample["json"]), tokens


def _webdataset(folder: Path) -> Any:
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    return wds.WebDataset(tars, shardshuffle=False).repeat()


def _collated(samples: Any, batch: int) -> Iterator[Clips]:
    stream = iter(samples)
    while rows := list(itertools.islice(stream, batch)):
        keys, metadata, tokens = zip(*rows, strict=True)
        stacked = torch.from_numpy(np.stack(tokens).astype(np.int64))
        yield Clips(list(keys), [record["text"] for record in metadata], stacked)


OTHERS: dict[str, Callable[..., Iterator[Clips]]] = {
    "default_decode": default_decode,
    "tuned_decode": tuned_decode,
}


def require_equal(folder: Path, clips: int) -> None:
    """Stop unless every path gives the same tokens and captions for the same keys."""
    expected = _by_key(ours(folder), clips)
    for name, path in OTHERS.items():
        found = _by_key(path(folder), clips)
        if found.keys() != expected.keys():
            raise SystemExit(f"{name} gives other keys than ours")
        for key, (text, tokens) in expected.items():
            if found[key][0] != text or not torch.equal(found[key][1], tokens):
                raise SystemExit(f"{name} gives another clip {key} than ours")


def _by_key(batches: Iterator[Clips], clips: int) -> dict[str, tuple[str, torch.Tensor]]:
    found: dict[str, tuple[str, torch.Tensor]] = {}
    for batch in itertools.islice(batches, -(-clips // BATCH)):
        found.update(zip(batch.keys, zip(batch.texts, batch.tokens, strict=True), strict=True))
    return found


def measure_ratio(folder: Path, other: str, *, rounds: int, clips: int, batch: int = BATCH) -> dict[str, Any]:
    """Let ours and another path take turns of about `clips` clips.

    Returns:
        Clips a second of CPU time of both, medians over the rounds, and the ratios of the rounds.
    """
    sides = {"ours": ours(folder, batch), other: OTHERS[other](folder, batch)}
    for side in sides.values():
        next(side)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 else reversed(sides):
            rates[name].append(_rate(sides[name], clips // batch, time.process_time))
    ratios = [mine / its for mine, its in zip(rates["ours"], rates[other], strict=True)]
    return {
        "ours": round(statistics.median(rates["ours"])),
        other: round(statistics.median(rates[other])),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        "ratio_highest": round(max(ratios), 2),
    }


def _rate(side: Iterator[Clips], batches: int, clock: Callable[[], float]) -> float:
    """Return clips a second over some batches."""
    start = clock()
    clips = sum(len(batch.keys) for batch in itertools.islice(side, batches))
    return clips / (clock() - start)


def measure_read_limit(folder: Path, *, rounds: int, clips: int) -> dict[str, Any]:
    """Compare tokens a second with those that pass when the same files are only read from front to back."""
    tokens = sum(shard.frames for shard in read_manifest(folder).shards) * N_Q
    mine, limit = [], []
    side = ours(folder)
    next(side)
    for _ in range(rounds):
        start = time.process_time()
        for path in folder.glob("*.tar"):
            with path.open("rb", buffering=0) as file:
                while file.read(2**20):
                    pass
        limit.append(tokens / (time.process_time() - start))
        mine.append(_rate(side, clips // BATCH, time.process_time) * N_Q * FRAMES)
    ours_rate, limit_rate = statistics.median(mine), statistics.median(limit)
    return {
        "ours_tokens_per_s": round(ours_rate),
        "read_tokens_per_s": round(limit_rate),
        "share_of_limit": round(ours_rate / limit_rate, 3),
    }


def measure_workers(folder: Path, workers: int, *, rounds: int, clips: int) -> dict[str, Any]:
    """Measure a running loader with workers.

    Returns:
        Clips a second by the clock, median and best of the rounds; and microseconds of CPU time that a clip costs
        in the training process and, all together, in the workers.
    """
    side = ours(folder, workers=workers)
    for _ in itertools.islice(side, 4 * max(1, workers)):  # until the first batches are used up
        pass
    children = psutil.Process().children()
    spent = [sum(child.cpu_times()[:2]) for child in children]
    start = time.process_time()
    rates = [_rate(side, clips // BATCH, time.perf_counter) for _ in range(rounds)]
    used = rounds * (clips // BATCH) * BATCH / 1e6
    worked = sum(sum(child.cpu_times()[:2]) - before for child, before in zip(children, spent, strict=True))
    return {
        "clips_per_s": round(statistics.median(rates)),
        "best": round(max(rates)),
        "main_cpu_us_per_clip": round((time.process_time() - start) / used, 1),
        "workers_cpu_us_per_clip": round(worked / used, 1),
    }


OPENING = """
import json, sys, time
from pathlib import Path
import psutil
from datamodules.tokens import TokenDataModule

start = time.perf_counter()
data = TokenDataModule(sys.argv[1], segment_duration=float(sys.argv[2]), batch_size=32, num_workers=2)
data.setup()
opened = time.perf_counter() - start
start = time.perf_counter()
batches = iter(data.train_dataloader())
next(batches)
first = time.perf_counter() - start
for _ in range(200):
    next(batches)
memory = [child.memory_full_info().uss for child in psutil.Process().children()]
print(json.dumps({"opened_s": round(opened, 3), "first_batch_s": round(first, 3),
                  "worker_own_mb": round(max(memory) / 1e6, 1)}))
"""


def measure_opening(folder: Path, seconds: float) -> dict[str, float]:
    """Time a fresh process with two workers to its first batch; memory of a worker that it shares with nobody."""
    command = [sys.executable, "-W", "ignore", "-c", OPENING, str(folder), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def hardware() -> dict[str, Any]:
    """Say what all this ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )
    packages = ("torch", "numpy", "webdataset", "lightning")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for made-up shards")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    parser.add_argument("--clips", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--million", action="store_true", help="a million clips too: 3 GB, some minutes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = make_shards(args.work / f"clips_{args.clips}", args.clips)
    require_equal(folder, args.clips)
    turns = {"rounds": args.rounds, "clips": args.clips // 4}
    results: dict[str, Any] = {"hardware": hardware(), "clips": args.clips, "batch": BATCH, "equal": True}
    results["one_core"] = {
        name: measure_ratio(folder, name, **turns) | {"target": TARGETS[name]} for name in OTHERS
    }
    results[f"one_core_batch_{SMALL_BATCH}"] = {
        name: measure_ratio(folder, name, batch=SMALL_BATCH, **turns) for name in OTHERS
    }
    results["read_limit"] = measure_read_limit(folder, **turns)
    results["by_workers"] = {workers: measure_workers(folder, workers, **turns) for workers in (0, 1, 2, 4)}
    results["clips_per_s_needed"] = NEEDED
    if args.million:
        for clips in (10_000, 1_000_000):
            small = make_shards(args.work / f"short_{clips}", clips, frames=50)
            results[f"opening_{clips}_clips"] = measure_opening(small, 1.0)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
