"""One order at work: it becomes files, and sentences that say how far it is.

Shapes: audio float32 [channels, samples]; K codebooks, T frames.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from magnet_train.audio import AudioStream, audio_seconds, read_audio, write_audio
from magnet_train.demo.order import Kind, Order, Source, settings
from magnet_train.demo.pictures import draw_order, draw_sound
from magnet_train.demo.watching import WatchedMagnet
from magnet_train.editing import ROUNDING, plan_edit
from magnet_train.errors import UserError

LONGEST_RECORDING = 600.0  # s; longer ones are for the command line
RANDOM_SEEDS = 10**6  # easy to read out and to type


@dataclass(frozen=True)
class Clip:
    """A clip that is done.

    Args:
        seed: Its own.
        audio: WAV file.
        sound: PNG of its spectrogram.
        order: PNG of the order in which its tokens were found.
        settings: How to make it again.
        loops: Whether its end goes on at its beginning.
    """

    seed: int
    audio: Path
    sound: Path
    order: Path
    settings: str
    loops: bool


@dataclass(frozen=True)
class Update:
    """How far a job is.

    Args:
        state: What it does or how it ended.
        message: The same in a sentence.
        share: How much is done, 0..1.
        clips: Those that are done.
        kept: WAV of what a continuation begins with.
    """

    state: Literal["waiting", "working", "done", "stopped", "failed"]
    message: str
    share: float = 0.0
    clips: tuple[Clip, ...] = ()
    kept: Path | None = None


def random_seed() -> int:
    """Draw a seed that nobody has chosen."""
    return secrets.randbelow(RANDOM_SEEDS)


def recording_seconds(path: Path) -> float:
    """Say how long an uploaded recording is.

    Raises:
        UserError: It is no audio, or longer than a page should handle.
    """
    seconds = audio_seconds(path)
    if seconds > LONGEST_RECORDING:
        raise UserError(
            f"{path.name} lasts {seconds / 60:.1f} minutes; cut it to at most {LONGEST_RECORDING / 60:.0f}, or use "
            "`magnet-train generate`, which takes any length."
        )
    return seconds


class Job:
    """One order at work.

    Args:
        magnet: Makes the clips.
        source: How the command line names it.
        order: What is wanted.
        folder: For the files.
    """

    def __init__(self, magnet: WatchedMagnet, source: Source, order: Order, folder: Path) -> None:
        self.magnet, self.source, self.order, self.folder = magnet, source, order, folder
        self.update = Update("working", "Starting.")
        self._outside = (0, 0)  # frames of a recording before and after what the model sees

    def tell(
        self, state: Literal["working", "done", "stopped", "failed"], message: str, **new: object
    ) -> None:
        """Change the update; clips that are there stay."""
        self.update = replace(self.update, state=state, message=message, **new)  # type: ignore[arg-type]

    def run(self, check: Callable[[], None]) -> None:
        """Make the clips one by one, each from its own seed, so that each can be made again alone.

        Args:
            check: Called between steps; ends the job by raising.

        Raises:
            UserError: Something in the order does not fit the model or the recording.
        """
        make, recording = self._maker()
        began = time.monotonic()

        def step(index: int, done: int, total: int) -> None:
            check()
            share = (index + done / total) / self.order.clips
            left = (time.monotonic() - began) * (1 / share - 1)
            self.tell("working", _progress_message(index, self.order.clips, done, total, left), share=share)

        for index in range(self.order.clips):
            seed = self.order.seed + index
            texts = [self.order.text or None]
            audio = make(texts, seed=seed, decoding=self.order.decoding, progress=partial(step, index))[0]
            check()
            clip = self._write(index, seed, audio, recording)
            self.update = replace(self.update, clips=(*self.update.clips, clip))
        took = time.monotonic() - began
        count = "1 clip" if self.order.clips == 1 else f"{self.order.clips} clips"
        self.tell("done", f"Made {count} in {took:.1f} s.", share=1.0)

    def _write(self, index: int, seed: int, audio: Tensor, recording: str | None) -> Clip:
        wav, sound = self.folder / f"clip_seed_{seed}.wav", self.folder / f"sound_{index}.png"
        write_audio(wav, audio, self.magnet.sample_rate)
        order = self.folder / f"order_{index}.png"
        draw_sound(audio, sound)
        draw_order(self._order_of_tokens(), self.order.decoding.decoding_steps, order)
        words = settings(self.order, seed, self.source, recording)
        return Clip(seed, wav, sound, order, words, self.order.kind is Kind.LOOP)

    def _order_of_tokens(self) -> Tensor:
        """Return the steps that found the tokens, int64 [K, T]; those of a recording that the model did not see count
        as given."""
        found = self.magnet.order
        assert found is not None  # a clip was made
        return torch.nn.functional.pad(found, self._outside)

    def _maker(self) -> tuple[Callable[..., Tensor], str | None]:
        """Return what makes clips [1, channels, samples], and the file that a command would name beside it."""
        order, magnet = self.order, self.magnet
        if order.kind is Kind.EDIT and order.recording is not None:
            recording_seconds(order.recording)
            recording = read_audio(order.recording, magnet.sample_rate, magnet.codec.channels)
            self._outside = self._around_the_clip(recording)
            return partial(magnet.edit, recording, order.region), order.recording.name
        if order.seconds > magnet.segment_duration:  # the picture of its order would have many windows
            raise UserError(
                f"{order.seconds:g} s are asked for and this page makes up to {magnet.segment_duration:g} s; take less, or "
                "`magnet-train generate`, which goes on from there."
            )
        prompt = None
        if order.kind is Kind.CONTINUE and order.recording is not None:
            kept = self._keep(order.recording)
            self.update = replace(self.update, kept=kept)
            prompt = read_audio(kept, magnet.sample_rate, magnet.codec.channels)
            return partial(magnet.generate, seconds=order.seconds, prompt=prompt), kept.name
        return partial(magnet.generate, seconds=order.seconds, loop=order.kind is Kind.LOOP), None

    def _around_the_clip(self, recording: Tensor) -> tuple[int, int]:
        """Count the frames of a recording before and after what the model sees of it."""
        magnet = self.magnet
        rate, seconds = magnet.codec.frame_rate, recording.shape[-1] / magnet.sample_rate
        edit = plan_edit(self.order.region, seconds, rate, magnet.segment_duration)
        return edit.clip_first, math.ceil(seconds * rate - ROUNDING) - edit.clip_end

    def _keep(self, recording: Path) -> Path:
        """Cut out what a continuation begins with; as a file, so that the same can be done from the command line."""
        length = recording_seconds(recording)
        seconds = min(length, self.order.kept_seconds)
        start = length - seconds if self.order.from_end else 0.0
        stream = AudioStream(
            recording, self.magnet.sample_rate, self.magnet.codec.channels, start, start + seconds
        )
        which = "last" if self.order.from_end else "first"
        path = self.folder / f"{recording.stem[:80]}_{which}_{seconds:.2f}_s.wav"
        write_audio(path, torch.cat(list(stream), dim=-1), self.magnet.sample_rate)
        return path


def as_sentence(error: UserError) -> str:
    """Begin an error as the page's other sentences begin."""
    message = str(error)
    return message[:1].upper() + message[1:]


def _progress_message(index: int, clips: int, done: int, total: int, left: float) -> str:
    which = f"Clip {index + 1} of {clips}, step" if clips > 1 else "Step"
    time_left = f"{max(1, round(left))} s" if left < 100 else f"{round(left / 60)} min"
    return f"{which} {done} of {total}, about {time_left} left."
