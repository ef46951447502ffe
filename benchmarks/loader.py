"""Measure the loader against webdataset, in pairs on one core, and at a million clips.

    python benchmarks/loader.py --work runs/loader               # ratios and workers
    python benchmarks/loader.py --work runs/loader --million     # the index at a million clips as well

Every path delivers the same: tokens int64 [B, 4, 500], B captions, B keys. Before anything is timed, all of
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
import torch
import webdataset as wds

from datamodules.manifest import read_manifest
from datamodules.tokens import TokenDataModule
from datamodules.writer import ShardWriter
from magnet_train.tokens import CodecInfo

N_Q, FRAMES, CARD, FRAME_RATE = 4, 500, 2048, 50.0
BATCH = 32
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


def ours(folder: Path, workers: int = 0) -> Iterator[Clips]:
    """Read with this package, shuffled, for ever."""
    data = TokenDataModule(
        folder, val_shards=folder, segment_duration=FRAMES / FRAME_RATE, batch_size=BATCH, num_workers=workers
    )
    data.setup()
    for batch in data.train_dataloader():
        yield Clips(batch["key"], batch["text"], batch["tokens"])


def default_decode(folder: Path) -> Iterator[Clips]:
    """Read as webdataset's documentation does."""
    return _collated(_webdataset(folder).decode().to_tuple("__key__", "json", "npy"))


def tuned_decode(folder: Path) -> Iterator[Clips]:
    """Read with webdataset and decode by hand: the header of the npy is skipped, not parsed."""
    return _collated(_webdataset(folder).map(_decode_by_hand))


def _decode_by_hand(sample: dict[str, Any]) -> tuple[str, dict[str, Any], Any]:
    tokens = np.frombuffer(sample["npy"], dtype="<i2", offset=128).reshape(N_Q, FRAMES)
    return sample["__key__"], json.loads(sample["json"]), tokens


def _webdataset(folder: Path) -> Any:
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    return wds.WebDataset(tars, shardshuffle=False).repeat()


def _collated(samples: Any) -> Iterator[Clips]:
    stream = iter(samples)
    while batch := list(itertools.islice(stream, BATCH)):
        keys, metadata, tokens = zip(*batch, strict=True)
        stacked = torch.from_numpy(np.stack(tokens).astype(np.int64))
        yield Clips(list(keys), [record["text"] for record in metadata], stacked)


Path_ = Callable[[Path], Iterator[Clips]]
OTHERS: dict[str, Path_] = {"default_decode": default_decode, "tuned_decode": tuned_decode}


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


def measure_ratio(folder: Path, other: str, rounds: int, batches: int) -> dict[str, Any]:
    """Let ours and another path take turns.

    Returns:
        Clips a second of CPU time of both, medians over the rounds, and the ratios of the rounds.
    """
    sides = {"ours": ours(folder), other: OTHERS[other](folder)}
    for side in sides.values():
        next(side)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 else reversed(sides):
            start = time.process_time()
            for _ in itertools.islice(sides[name], batches):
                pass
            rates[name].append(batches * BATCH / (time.process_time() - start))
    ratios = [mine / its for mine, its in zip(rates["ours"], rates[other], strict=True)]
    return {
        "ours": round(statistics.median(rates["ours"])),
        other: round(statistics.median(rates[other])),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        "ratio_highest": round(max(ratios), 2),
    }


def measure_read_limit(folder: Path, rounds: int, batches: int) -> dict[str, Any]:
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
        start = time.process_time()
        for _ in itertools.islice(side, batches):
            pass
        mine.append(batches * BATCH * N_Q * FRAMES / (time.process_time() - start))
    ours_rate, limit_rate = statistics.median(mine), statistics.median(limit)
    return {
        "ours_tokens_per_s": round(ours_rate),
        "read_tokens_per_s": round(limit_rate),
        "share_of_limit": round(ours_rate / limit_rate, 3),
    }


def measure_workers(folder: Path, workers: int, batches: int) -> int:
    """Return clips a second by the clock, out of a running loader."""
    side = ours(folder, workers)
    for _ in itertools.islice(side, 4 * max(1, workers)):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(side, batches):
        pass
    return round(batches * BATCH / (time.perf_counter() - start))


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
    batches = args.clips // BATCH // 4
    results: dict[str, Any] = {"hardware": hardware(), "clips": args.clips, "batch": BATCH, "equal": True}
    results["one_core"] = {
        name: measure_ratio(folder, name, args.rounds, batches) | {"target": TARGETS[name]} for name in OTHERS
    }
    results["read_limit"] = measure_read_limit(folder, args.rounds, batches)
    results["clips_per_s_by_workers"] = {n: measure_workers(folder, n, 2 * batches) for n in (0, 1, 2, 4)}
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
