"""Kill a process that writes checkpoints in a tight loop, again and again, and count unreadable ones.

    python kill_while_writing.py FOLDER KILLS MEGABYTES

Prints one JSON object. Each writer is a fork of this process, so that the imports are paid once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from magnet_train.storage.atomic_io import sweep_partial_files
from magnet_train.training.checkpointing import (
    LAST,
    AtomicCheckpointIO,
    find_checkpoint,
    why_unreadable,
)


def write_for_ever(folder: Path, first_step: int, megabytes: int, began: int) -> None:
    """Save steps first_step, first_step + 1, ... and keep the newest two, as training does."""
    sweep_partial_files(folder)
    plugin = AtomicCheckpointIO()
    os.write(began, b"x")
    step = first_step
    while True:
        weights = torch.full((megabytes * 2**18,), float(step))
        content = {"state_dict": {"w": weights}, "loops": {}, "optimizer_states": [], "global_step": step}
        plugin.save_checkpoint(content, folder / f"step={step:07d}.ckpt")
        plugin.remove_checkpoint(folder / f"step={step - 2:07d}.ckpt")
        step += 1


def main() -> None:
    """Kill at delays that are spread over the time of a write."""
    folder, kills, megabytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    unreadable, swept, went_back, step = 0, 0, 0, 1
    for number in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            write_for_ever(folder, step, megabytes, writer)
        os.read(reader, 1)
        time.sleep(0.4 * ((number * 0.618) % 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
        swept += len(list(folder.glob(".*.partial")))
        if not (folder / LAST).exists():
            continue  # killed before the first one was whole
        unreadable += why_unreadable(folder / LAST) is not None
        newest, passed_over = find_checkpoint(folder)
        unreadable += len(passed_over)
        assert newest is not None
        found = torch.load(newest, weights_only=True)
        unreadable += not bool((found["state_dict"]["w"] == float(found["global_step"])).all())
        went_back += found["global_step"] < step - 1
        step = found["global_step"] + 1
    sweep_partial_files(folder)
    left = len(list(folder.glob(".*.partial")))
    print(
        json.dumps(
            {"unreadable": unreadable, "went_back": went_back, "steps": step, "swept": swept, "left": left}
        )
    )


if __name__ == "__main__":
    main()
