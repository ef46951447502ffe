"""Generate the clips of a request one after another, with progress and cancellation.

Shapes: audio float32 [channels, samples].
"""

from __future__ import annotations

import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from magnet_train import __version__
from magnet_train.apps.demo.request import ClipRequest, Task, recording_seconds
from magnet_train.audio import AudioStream, draw_spectrogram, read_audio, write_audio
from magnet_train.pipeline.file_edit import FileEdit
from magnet_train.pipeline.magnet import Magnet

STOP_SECONDS = 30.0  # that `close` waits for the decoding step in progress

Progress = Callable[[float, str], None]  # called with the fraction done, 0..1, and a sentence about it


class Cancelled(Exception):  # noqa: N818  not an error
    """The visitor cancelled the request."""


@dataclass(frozen=True)
class ModelSource:
    """Values of the options that load the model on the command line."""

    model: str
    device: str
    precision: str
    adapter: str | None = None
    adapter_strength: float = 1.0


@dataclass(frozen=True)
class Clip:
    """A finished clip."""

    title: str  # task, seed and number of the variation, and the loudness if one was asked for
    audio: Path
    picture: Path  # PNG of the spectrogram
    command: str  # generates the same clip
    loops: bool
    prompt: Path | None  # WAV that a continuation starts with


class ClipService:
    """Generates clips with one model; gradio's queue runs one request at a time.

    Each request gets its own folder in `folder` with a random name, since whoever knows a clip's path can download it.
    """

    def __init__(self, magnet: Magnet, source: ModelSource, folder: Path) -> None:
        self.magnet, self.source, self.folder = magnet, source, folder
        self._cancelled: dict[str, threading.Event] = {}  # by session
        self._generating, self._closed = threading.Lock(), threading.Event()

    def make(self, request: ClipRequest, session: str, progress: Progress) -> Iterator[Clip]:
        """Generate the clips of a request from a visitor's session, each yielded as soon as it is finished.

        Raises:
            UserError: The request does not fit the model or the recording.
            Cancelled: `cancel` or `close` was called; clips yielded before are complete.
        """
        cancelled = self._cancelled[session] = threading.Event()
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        began = time.monotonic()

        def step(index: int, done: int, total: int) -> None:
            if cancelled.is_set() or self._closed.is_set():
                raise Cancelled
            fraction = (index + done / total) / request.clips
            left = (time.monotonic() - began) * (1 / fraction - 1)  # s
            time_left = f"{max(1, round(left))} s" if left < 100 else f"{round(left / 60)} min"
            progress(fraction, f"Clip {index + 1} of {request.clips}, about {time_left} left")

        try:
            # The lock is held for one clip at a time: gradio may drop this generator between two of them.
            with self._generating:
                generate, write, prompt = self._prepare(request, folder)
            settings = {"seed": request.seed, "decoding": request.decoding, "negative": request.negative}
            generate = partial(generate, [request.text], **settings)
            for index in range(request.clips):
                file = folder / f"clip_{request.seed}_{index}.{request.format}"
                picture = file.with_suffix(".png")
                with self._generating:
                    audio = generate(first_index=index, progress=partial(step, index))[0]
                    loudness = write(file, audio)
                    if request.task is Task.EDIT:  # the whole recording
                        audio = read_audio(file, self.magnet.sample_rate, self.magnet.codec.channels)
                    draw_spectrogram(audio, self.magnet.sample_rate, picture)
                number = f", {index + 1}" if request.clips > 1 else ""
                level = "" if loudness is None else f", {loudness:.1f} LUFS"
                title = f"{request.task}, seed {request.seed}{number}{level}"
                words = command(request, index, self.source, prompt or request.recording)
                yield Clip(title, file, picture, words, request.task is Task.LOOP, prompt)
        finally:
            self._cancelled.pop(session, None)

    def cancel(self, session: str) -> None:
        """Stop a session's request after the decoding step in progress."""
        if cancelled := self._cancelled.get(session):
            cancelled.set()

    def close(self) -> None:
        """Stop every request, and wait for the step in progress: a process must not end while a thread computes."""
        self._closed.set()
        if self._generating.acquire(timeout=STOP_SECONDS):
            self._generating.release()

    def _prepare(
        self, request: ClipRequest, folder: Path
    ) -> tuple[Callable[..., Tensor], Callable[[Path, Tensor], float | None], Path | None]:
        """Return the function that generates [1, channels, samples], the one that writes a clip, and the prompt.

        The one that writes returns the loudness reached, if one was asked for.
        """
        magnet, rate = self.magnet, self.magnet.sample_rate
        if request.task is Task.EDIT and request.recording is not None:
            recording_seconds(request.recording)
            edit = FileEdit(magnet, request.recording, request.region, request.format)
            return edit.make, edit.write, None
        generate = partial(magnet.generate, loop=request.task is Task.LOOP)
        if request.bars is None:
            generate = partial(generate, seconds=request.seconds)
        else:
            generate = partial(generate, bars=request.bars, bpm=request.bpm)
        prompt = None
        if request.task is Task.CONTINUE and request.recording is not None:
            prompt = self._cut_prompt(request, request.recording, folder)
            generate = partial(generate, prompt=read_audio(prompt, rate, magnet.codec.channels))
        return generate, partial(write_audio, sample_rate=rate, loudness=request.loudness), prompt

    def _cut_prompt(self, request: ClipRequest, recording: Path, folder: Path) -> Path:
        """Cut the prompt of a continuation into a file, which the command line can use as well."""
        length = recording_seconds(recording)
        seconds = min(length, request.kept_seconds)
        start = length - seconds if request.from_end else 0.0
        rate, channels = self.magnet.sample_rate, self.magnet.codec.channels
        which = "last" if request.from_end else "first"
        path = folder / f"{recording.stem[:80]}_{which}_{seconds:.2f}_s.wav"
        stream = AudioStream(recording, rate, channels, start, start + seconds)
        write_audio(path, torch.cat(list(stream), dim=-1), rate)
        return path


def command(request: ClipRequest, index: int, source: ModelSource, recording: Path | None = None) -> str:
    """Return the shell command that generates clip number `index` of a request again.

    `recording`, or the prompt cut from it, is named without its folder.
    """
    decoding, name = request.decoding, "" if recording is None else recording.name
    guidance = f"{_digits(decoding.max_cfg_coef)},{_digits(decoding.min_cfg_coef)}"
    words = ["--model", source.model]
    if source.adapter is not None:
        words += ["--adapter", source.adapter, "--adapter_strength", _digits(source.adapter_strength)]
    words += ["--unconditional", "1"] if request.text is None else _option("--text", request.text)
    words += [] if request.negative is None else _option("--negative", request.negative)
    if request.task is Task.EDIT:
        words += [*_option("--edit", name), "--region", ":".join(map(_digits, request.region))]
    elif request.bars is not None and request.bpm is not None:
        words += ["--bars", str(request.bars), "--bpm", _digits(request.bpm)]
    else:
        words += ["--seconds", _digits(request.seconds)]
    if request.task is Task.CONTINUE:
        words += _option("--prompt", name)
    if request.task is Task.LOOP:
        words += ["--loop"]
    words += [] if request.loudness is None else _option("--loudness", _digits(request.loudness))
    if request.task is Task.EDIT or request.format != "wav":
        words += ["--format", request.format]
    words += ["--seed", str(request.seed), *(["--first_index", str(index)] if index else [])]
    words += ["--steps", ",".join(map(str, decoding.decoding_steps)), *_option("--cfg", guidance)]
    words += ["--temperature", _digits(decoding.temperature), "--top_p", _digits(decoding.top_p)]
    words += ["--no-constant_temperature" if decoding.anneal_temperature else "--constant_temperature"]
    words += [
        "--device",
        source.device,
        "--precision",
        source.precision,
        "--out",
        f"clip_{request.seed}_{index}",
    ]
    return f"magnet-train generate {shlex.join(words)}\n# magnet-train {__version__}"


def _option(name: str, value: str) -> list[str]:
    """Write `name=value` if the value starts with a dash, which would read as an option."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def _digits(value: float) -> str:
    """Write a number with all the digits that it takes to read back the same."""
    return repr(float(value)).removesuffix(".0")
