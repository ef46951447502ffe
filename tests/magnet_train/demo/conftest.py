"""A studio with the tiny checkpoint, and orders for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from magnet_train import __version__
from magnet_train.demo.order import Kind, Order, Source
from magnet_train.demo.studio import Studio
from magnet_train.demo.watching import WatchedMagnet

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def studio(checkpoint: Path) -> Studio:
    magnet = WatchedMagnet.from_pretrained(checkpoint)
    return Studio(magnet, Source(str(checkpoint), magnet.decoding, "cpu", __version__))


@pytest.fixture
def order(studio: Studio) -> Callable[..., Order]:
    """Return a function that fills in the form: one clip of 0.48 s of a flute, unless told otherwise."""

    def fill(kind: Kind = Kind.TEXT, **fields: Any) -> Order:
        filled = {
            "text": "a flute",
            "seconds": 0.48,
            "seed": 3,
            "clips": 1,
            "decoding": studio.magnet.decoding,
        }
        return Order(kind, **(filled | fields))

    return fill


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A tone of 1.5 s at a rate and with channels that are not the codec's."""
    time = np.arange(int(1.5 * 44100)) / 44100
    tone = 0.3 * np.sin(2 * np.pi * np.stack([220 * time, 330 * time], axis=1))
    path = tmp_path / "my song.wav"
    soundfile.write(path, tone, 44100)
    return path


class RunningDemo:
    """A real `magnet-train demo` in a process of its own.

    Args:
        model: What it shows.
        folder: Where its output goes, and its temporary files.
        options: Further options.
    """

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self._output = folder / "output.txt"
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "magnet_train",
                    "demo",
                    "--model",
                    str(model),
                    "--port",
                    "0",
                    *options,
                ],
                cwd=ROOT,
                env=os.environ
                | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                # A shell that runs tests in the background has told them to ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.url = self._wait_for_address()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + 120
        while (found := re.search(r"the page is at (\S+)", self.output)) is None:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return found[1]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="session")
def start_demo(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RunningDemo]]:
    """Return a function that starts a page for the tiny checkpoint; ended at last if nobody did before."""
    started: list[RunningDemo] = []

    def start(*options: str) -> RunningDemo:
        started.append(RunningDemo(checkpoint, tmp_path_factory.mktemp("demo"), *options))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


@pytest.fixture(scope="session")
def demo(start_demo: Callable[..., RunningDemo]) -> RunningDemo:
    """One for all tests that leave it running."""
    return start_demo()
