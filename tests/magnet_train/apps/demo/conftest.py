"""A clip service with the tiny checkpoint, filled forms, and running pages."""

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

import gradio as gr
import numpy as np
import pytest
import soundfile

from magnet_train.apps.demo.form import build_form
from magnet_train.apps.demo.request import ClipRequest, read_request
from magnet_train.apps.demo.service import ClipService, ModelSource
from magnet_train.pipeline.magnet import Magnet

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="session")
def magnet(checkpoint: Path) -> Magnet:
    return Magnet.from_pretrained(checkpoint)


@pytest.fixture
def service(magnet: Magnet, checkpoint: Path, tmp_path: Path) -> ClipService:
    folder = tmp_path / "clips of the page"
    folder.mkdir()
    return ClipService(magnet, ModelSource(str(checkpoint), "cpu", "float32"), folder)


@pytest.fixture(scope="session")
def first_form(magnet: Magnet) -> dict[str, Any]:
    """The initial values of the fields."""
    with gr.Blocks():
        return {name: field.value for name, field in build_form(magnet).items()}


@pytest.fixture
def form(first_form: dict[str, Any]) -> dict[str, Any]:
    """A form that asks for one clip of a flute with seed 3."""
    return first_form | {"text": "a flute", "clips": 1, "seed": 3, "random_seed": False}


@pytest.fixture
def request_of(magnet: Magnet, form: dict[str, Any]) -> Callable[..., ClipRequest]:
    """Return a function that reads the form with some values replaced."""
    return lambda **fields: read_request(magnet, form | fields)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A tone of 1.5 s whose sample rate and channels differ from the codec's."""
    time = np.arange(int(1.5 * 44100)) / 44100
    tone = 0.3 * np.sin(2 * np.pi * np.stack([220 * time, 330 * time], axis=1))
    path = tmp_path / "my song.wav"
    soundfile.write(path, tone, 44100)
    return path


class RunningDemo:
    """A real `magnet-train demo` in a process of its own.

    Args:
        model: Its --model.
        folder: Folder of its output and temporary files.
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
                # A shell that runs tests in the background makes them ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.url = self._wait_for_address()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + 600  # on a busy machine
        while (found := re.search(r"the page is at (\S+)", self.output)) is None:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return found[1]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def start_demo(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RunningDemo]]:
    """Return a function that starts a page for the tiny checkpoint; pages still running are killed at the end."""
    started: list[RunningDemo] = []

    def start(*options: str) -> RunningDemo:
        started.append(RunningDemo(checkpoint, tmp_path_factory.mktemp("demo"), *options))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


@pytest.fixture(scope="module")
def demo(start_demo: Callable[..., RunningDemo]) -> RunningDemo:
    """One page for all tests that leave it running."""
    return start_demo()
