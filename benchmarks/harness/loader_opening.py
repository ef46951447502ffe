"""Time to open shards, and memory of their index in a worker, measured in a fresh process."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import psutil

from datamodules.token_datamodule import TokenDataModule

_WORKERS = 2
_BATCH = 32
_BATCHES = 200  # read before memory is measured


def measure_opening(folder: Path, seconds: float) -> dict[str, float]:
    """Open shards of clips of `seconds` in a fresh process, with two workers and batches of 32.

    Returns:
        `opened_s` to set up the data, `first_batch_s` from there to the first batch, and `worker_own_mb`, the unshared
        memory of a worker after 200 batches (MB).
    """
    # Not by `multiprocessing`: a spawned process would spawn its workers too, and training forks them where it can.
    command = [sys.executable, "-P", "-W", "ignore", __file__, str(folder), str(seconds)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(answer))


def _open(folder: Path, seconds: float) -> dict[str, float]:
    start = time.perf_counter()
    data = TokenDataModule(folder, segment_duration=seconds, batch_size=_BATCH, num_workers=_WORKERS)
    data.setup()
    opened = time.perf_counter() - start
    start = time.perf_counter()
    batches = iter(data.train_dataloader())
    next(batches)
    first = time.perf_counter() - start
    for _ in itertools.islice(batches, _BATCHES):
        pass
    workers = [psutil.Process(worker.pid) for worker in multiprocessing.active_children()]
    own = max(worker.memory_full_info().uss for worker in workers)
    return {"opened_s": opened, "first_batch_s": first, "worker_own_mb": own / 1e6}


if __name__ == "__main__":
    print(json.dumps(_open(Path(sys.argv[1]), float(sys.argv[2]))))
