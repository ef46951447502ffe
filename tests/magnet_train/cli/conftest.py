"""The real command line on real shards, in this process or in one that can be killed."""

from __future__ import annotations

import csv
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from magnet_train.cli.main import main

ROOT = Path(__file__).parents[3]
SMALL = (
    *("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml"),
    *("--data.batch_size", "4", "--model.lm.dim", "32", "--model.lm.num_layers", "1"),
    *("--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--trainer.log_every_n_steps", "1"),
    *("--trainer.enable_progress_bar", "false", "--model.warmup_steps", "2"),
)


class Trainings:
    """Start `fit` on small models.

    Args:
        shards: What to train on.
        folder: For overlays and the output of processes.
    """

    def __init__(self, shards: Path, folder: Path) -> None:
        self.shards = shards
        self.folder = folder
        self.started: list[Training] = []

    def words(self, command: str, run: Path, *options: str) -> list[str]:
        return [command, *SMALL, "--data.shards", str(self.shards), "--run", str(run), *options]

    def fit(self, run: Path, *options: str) -> int:
        """Train in this process."""
        return main(self.words("fit", run, *options))

    def start(self, run: Path, *options: str, **environment: str) -> Training:
        """Train in a process of its own, which leads a process group."""
        output = self.folder / f"output_{len(self.started)}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "magnet_train", *self.words("fit", run, *options)],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(Training(process, output, run))
        return self.started[-1]


class Training:
    """A running `fit`."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, run: Path) -> None:
        self.process = process
        self.output = output
        self.run = run

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_until(self, happened: Callable[[], Any], seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.text[-3000:]
            assert time.monotonic() < deadline, self.text[-3000:]
            time.sleep(0.02)

    def wait(self, seconds: float = 180) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text[-3000:]) from None

    def ranks(self) -> list[int]:
        """Process ids of rank 0, 1, ..."""
        children = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [self.process.pid, *map(int, children.stdout.split())]

    def everyone_is_gone(self) -> bool:
        """Tell whether no process of the group is left, zombies aside."""
        states = subprocess.run(
            ["ps", "-o", "stat=", "-g", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return not [state for state in states.stdout.split() if not state.startswith("Z")]


@pytest.fixture
def trainings(token_shards: Path, tmp_path: Path) -> Iterator[Trainings]:
    """Whatever was started is ended afterwards."""
    made = Trainings(token_shards, tmp_path)
    yield made
    for training in made.started:
        if not training.everyone_is_gone():
            os.killpg(training.process.pid, signal.SIGKILL)
        training.process.wait()


@pytest.fixture
def without_rights() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command for which the permissions of files count, even where root runs the tests."""
    prctl = ctypes.CDLL(None).prctl

    def give_up_rights() -> None:
        for right in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
            prctl(
                24, right, 0, 0, 0
            )  # PR_CAPBSET_DROP; refused to others than root, who have none to give up

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "magnet_train", *map(str, words)]
        return subprocess.run(
            command, cwd=ROOT, text=True, capture_output=True, timeout=120, preexec_fn=give_up_rights
        )

    return run


@pytest.fixture
def load() -> Callable[[Path], dict[str, Any]]:
    """Load a checkpoint as plain data."""
    return lambda path: torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture
def column() -> Callable[[Path, str], dict[int, float]]:
    """Read one column of all the metrics files of a run: step -> value."""

    def read(run: Path, name: str) -> dict[int, float]:
        values: dict[int, float] = {}
        for path in [*sorted(run.glob("metrics.*.csv")), run / "metrics.csv"]:
            with path.open() as file:
                rows = list(csv.DictReader(file))
            values |= {int(row["step"]): float(row[name]) for row in rows if row.get(name)}
        return values

    return read
