"""Real training processes: killed at any moment, cut otherwise, short of shards; no clip is lost or repeated."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("training_run.py")
STEPS = 14  # of 8 clips; the 72 or so clips to train on end at step 9
pytestmark = pytest.mark.slow

Step = dict[int, tuple[str, str]]  # slot -> (key, hash of tokens and mask)


class Run:
    """A training run in a folder of its own."""

    def __init__(self, root: Path, shards: Path, name: str, **options: Any) -> None:
        self.folder = root / name
        self.folder.mkdir()
        self.options = {"devices": 2, "workers": 0, "steps": STEPS, **options}
        self.options |= {"shards": str(shards), "log": str(self.folder / "log")}
        self.options |= {"checkpoints": str(self.folder / "checkpoints")}

    def start(self) -> subprocess.Popen[bytes]:
        """Start the processes; from the newest checkpoint if there is one."""
        if checkpoints := self.checkpoints():
            self.options["resume"] = str(checkpoints[-1])
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, str(SCRIPT), json.dumps(self.options)],
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def finish(self) -> Run:
        """Run to the end."""
        process = self.start()
        try:
            assert process.wait(timeout=240) == 0, (self.folder / "output").read_text()[-3000:]
        finally:
            kill(process)
        return self

    def run_until(self, step: int) -> None:
        """Run until a rank has begun `step`, then kill all ranks at once."""
        process = self.start()
        deadline = time.monotonic() + 240
        while max(self.steps(), default=-1) < step:
            assert process.poll() is None, (self.folder / "output").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        kill(process)

    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("*.ckpt"))

    def steps(self) -> dict[int, Step]:
        """Join what the ranks wrote; a step made twice has to be the same both times."""
        found: dict[int, Step] = {}
        for log in self.folder.glob("log.[0-9]"):
            for line in log.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the kill cut it short
                    continue
                step = found.setdefault(record["step"], {})
                for slot, key, seen in record["rows"]:
                    assert step.setdefault(slot, (key, seen)) == (key, seen)
        return found

    def result(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((self.folder / "log.result").read_text())
        return answer


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def loss_gap(first: Run, second: Run) -> float:
    one, other = first.result()["losses"], second.result()["losses"]
    common = one.keys() & other.keys()
    assert len(common) == STEPS - 6
    return max(abs(one[step] - other[step]) for step in common)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_shards: Any) -> Path:
    folder: Path = write_shards(tmp_path_factory.mktemp("runs") / "shards", clips=80, frames=lambda n: 20 + n)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Run:
    """Two ranks, never killed."""
    run = Run(tmp_path_factory.mktemp("runs"), shards, "undisturbed").finish()
    steps = run.steps()
    assert sorted(steps) == list(range(STEPS))
    assert [slot for step in range(STEPS) for slot in sorted(steps[step])] == list(range(8 * STEPS))
    keys = [steps[slot // 8][slot][0] for slot in range(8 * STEPS)]
    epoch = next(count for count in range(1, len(keys)) if keys[count] in keys[:count])
    assert 8 < epoch < 8 * (STEPS - 2), "the kills have to lie on both sides of an epoch's end"
    return run


def test_killed_at_five_random_steps(tmp_path: Path, shards: Path, undisturbed: Run) -> None:
    """Each time killed at once with SIGKILL; it ends with the same clips, masks and weights, bit for bit."""
    steps = sorted(random.Random(time.time_ns()).sample(range(1, STEPS), 5))
    print("killed at", steps)
    run = Run(tmp_path, shards, "killed")
    for step in steps:
        run.run_until(step)
    run.finish()
    assert run.steps() == undisturbed.steps()
    assert run.result()["weights"] == undisturbed.result()["weights"]


@pytest.mark.parametrize(
    ("devices", "workers", "accumulate"), [(1, 0, 1), (1, 3, 1), (2, 1, 1), (4, 0, 1), (1, 0, 4)]
)
def test_resumed_in_another_layout(
    tmp_path: Path, shards: Path, undisturbed: Run, devices: int, workers: int, accumulate: int
) -> None:
    layout = {"devices": devices, "workers": workers, "accumulate": accumulate}
    run = Run(tmp_path, shards, "other", resume=str(undisturbed.checkpoints()[2]), **layout).finish()
    expected = {step: rows for step, rows in undisturbed.steps().items() if step >= 6}
    assert run.steps() == expected
    assert loss_gap(run, undisturbed) <= 1e-4
    if devices == 2:
        assert run.result()["weights"] == undisturbed.result()["weights"]


def test_fewer_shards_than_ranks_and_workers(tmp_path: Path, write_shards: Any) -> None:
    """One shard for two ranks of two workers each: equal steps, and nothing twice in an epoch."""
    folder = write_shards(tmp_path / "shards", clips=30)
    assert_epochs(Run(tmp_path, folder, "one_shard", workers=2, steps=6).finish().steps())


def test_uneven_shards(tmp_path: Path, write_shards: Any) -> None:
    """Shards of 1 to 40 clips: it makes no difference which clips lie together."""
    folder = write_shards(
        tmp_path / "shards", clips=60, frames=lambda n: 600 if n < 20 else 20, shard_bytes=2**16
    )
    counts = {shard["samples"] for shard in json.loads((folder / "manifest.json").read_text())["shards"]}
    assert len(counts) > 1
    assert_epochs(Run(tmp_path, folder, "uneven", workers=1, steps=12).finish().steps())


def test_validation_over_two_ranks(tmp_path: Path, shards: Path, write_shards: Any) -> None:
    """9 clips in batches of 4 on two ranks: two batches each, every clip once."""
    other = write_shards(tmp_path / "val", clips=9)
    options = {"steps": 2, "validate_at": 2, "data": {"val_shards": str(other)}}
    run = Run(tmp_path, shards, "validated", **options).finish()
    ranks = [
        [json.loads(line) for line in log.read_text().splitlines()]
        for log in sorted(run.folder.glob("log.*.validated"))
    ]
    assert [len(batches) for batches in ranks] == [2, 2]
    keys = [key for batches in ranks for batch in batches for key in batch if key]
    assert sorted(keys) == [f"clip{number:04d}" for number in range(9)]


def assert_epochs(steps: dict[int, Step]) -> None:
    """Both ranks have made all steps, and the keys of each epoch are all different."""
    rows = {slot: row for step in steps.values() for slot, row in step.items()}
    assert sorted(rows) == list(range(8 * len(steps)))
    keys = [rows[slot][0] for slot in sorted(rows)]
    clips = len(set(keys))
    assert clips < len(keys)
    for start in range(0, len(keys), clips):
        epoch = keys[start : start + clips]
        assert len(set(epoch)) == len(epoch)
