"""Make the clips that a visitor asked for, one after another, until they are there or no longer wanted.

Shapes: audio float32 [channels, samples].
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from magnet_train.apps.demo.clip_request import LONGEST_RECORDING, ClipRequest, Source, Task, command
from magnet_train.audio import AudioStream, audio_seconds, read_audio, write_audio, write_edit
from magnet_train.audio.spectrogram import draw_spectrogram
from magnet_train.errors import UserError
from magnet_train.pipeline.magnet import Magnet

STOP_SECONDS = 30.0  # that the step at work may take when the page is closed

Report = Callable[[float, str], None]
"""Called with the share that is done, 0..1, and a sentence about it."""


class Cancelled(Exception):  # noqa: N818  nothing went wrong
    """The visitor no longer wants the clips."""


@dataclass(frozen=True)
class Clip:
    """A clip that is done.

    Args:
        title: What tells it from others of its visitor.
        audio: WAV file.
        picture: PNG of its spectrogram.
        command: How to make it again.
        loops: Whether its end goes on at its beginning.
        kept: WAV of the part of a recording that it continues.
    """

    title: str
    audio: Path
    picture: Path
    command: str
    loops: bool
    kept: Path | None


class ClipService:
    """A model, and the clips that are made with it. gradio's queue calls it for one visitor at a time.

    Args:
        magnet: The model.
        source: How the command line names it.
        folder: For the clips, each request's in a folder whose name cannot be guessed: whoever knows the path of a
            file in it may hear it.
    """

    def __init__(self, magnet: Magnet, source: Source, folder: Path) -> None:
        self.magnet, self.source, self.folder = magnet, source, folder
        self._wanted: dict[str, threading.Event] = {}  # session -> set when it cancels
        self._at_work, self._closed = threading.Lock(), threading.Event()

    def make(self, request: ClipRequest, session: str, report: Report) -> Iterator[Clip]:
        """Make the clips of a request.

        Args:
            request: What is wanted.
            session: By whom; `cancel` takes the same.
            report: Called after each step.

        Raises:
            UserError: Something does not fit the model or the recording.
            Cancelled: `cancel` was called; clips that were yielded before are whole.
        """
        cancelled = self._wanted[session] = threading.Event()
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        began = time.monotonic()

        def step(index: int, done: int, total: int) -> None:
            if cancelled.is_set() or self._closed.is_set():
                raise Cancelled
            share = (index + done / total) / request.clips
            left = (time.monotonic() - began) * (1 / share - 1)
            report(share, f"Clip {index + 1} of {request.clips}, about {_time(left)} left")

        try:
            with self._at_work:
                make, write, kept = self._maker(request, folder)
            named = kept or request.recording
            for index in range(request.clips):
                wav = folder / f"clip_{request.seed}_{index}.wav"
                picture = wav.with_suffix(".png")
                with self._at_work:
                    # One by one, so that each can be heard as soon as it is there.
                    audio = make(
                        [request.text],
                        seed=request.seed,
                        first_index=index,
                        decoding=request.decoding,
                        progress=partial(step, index),
                    )[0]
                    write(wav, audio)
                    draw_spectrogram(audio, self.magnet.sample_rate, picture)
                words = command(request, index, self.source, None if named is None else named.name)
                yield Clip(_title(request, index), wav, picture, words, request.task is Task.LOOP, kept)
        finally:
            self._wanted.pop(session, None)

    def cancel(self, session: str) -> None:
        """Stop what is made for a session after the step at work."""
        if cancelled := self._wanted.get(session):
            cancelled.set()

    def close(self) -> None:
        """Stop everything and wait until it has: a process must not end while a thread of it computes."""
        self._closed.set()
        if self._at_work.acquire(timeout=STOP_SECONDS):
            self._at_work.release()

    def _maker(
        self, request: ClipRequest, folder: Path
    ) -> tuple[Callable[..., Tensor], Callable[[Path, Tensor], None], Path | None]:
        """Return what makes clips [1, channels, samples], what writes them, and the file that they continue."""
        magnet, rate = self.magnet, self.magnet.sample_rate

        def write(path: Path, audio: Tensor) -> None:
            write_audio(path, audio, rate)

        if request.task is Task.EDIT and request.recording is not None:
            recording_seconds(request.recording)
            recording = read_audio(request.recording, rate, magnet.codec.channels)
            return (
                partial(magnet.edit, recording, request.region),
                lambda path, audio: write_edit(path, audio, recording, rate),
                None,
            )
        if request.task is Task.CONTINUE and request.recording is not None:
            kept = self._keep(request, request.recording, folder)
            prompt = read_audio(kept, rate, magnet.codec.channels)
            return partial(magnet.generate, seconds=request.seconds, prompt=prompt), write, kept
        return partial(magnet.generate, seconds=request.seconds, loop=request.task is Task.LOOP), write, None

    def _keep(self, request: ClipRequest, recording: Path, folder: Path) -> Path:
        """Cut out what a continuation begins with; as a file, so that the command line can do the same."""
        length = recording_seconds(recording)
        seconds = min(length, request.kept_seconds)
        start = length - seconds if request.from_end else 0.0
        rate, channels = self.magnet.sample_rate, self.magnet.codec.channels
        which = "last" if request.from_end else "first"
        path = folder / f"{recording.stem[:80]}_{which}_{seconds:.2f}_s.wav"
        stream = AudioStream(recording, rate, channels, start, start + seconds)
        write_audio(path, torch.cat(list(stream), dim=-1), rate)
        return path


def recording_seconds(path: Path) -> float:
    """Say how long an uploaded recording is.

    Raises:
        UserError: It is no audio, or longer than a page should handle.
    """
    seconds = audio_seconds(path)
    if not seconds <= LONGEST_RECORDING:
        raise UserError(
            f"{path.name} lasts {seconds / 60:.1f} minutes; cut it to at most {LONGEST_RECORDING / 60:.0f}, or use "
            "`magnet-train generate`, which takes any length."
        )
    return seconds


def _title(request: ClipRequest, index: int) -> str:
    variation = f", {index + 1}" if request.clips > 1 else ""
    return f"{request.task}, seed {request.seed}{variation}"


def _time(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"
