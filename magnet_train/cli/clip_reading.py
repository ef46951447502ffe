"""Read clips in blocks, ahead of the codec, and reject those that cannot be used.

Shapes: audio float32 [channels, samples].
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from datamodules.shards.writer import metadata_bytes
from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.caption_rules import CaptionError, CaptionRule
from datamodules.tokenize.captions import describe
from magnet_train.audio import AudioStream, WrongScaleError, audio_seconds
from magnet_train.audio.recording import require_audio_file
from magnet_train.codecs import Codec
from magnet_train.codecs.chunked import samples_per_frame
from magnet_train.errors import UserError
from magnet_train.storage.file_source import FileSource

_ALREADY_CUT = 1.0  # s by which a file found by id may exceed its clip and still count as the clip itself
_LATE = 0.1  # s by which a clip may end after its file: lists round times, and mp3 pads
SILENCE = 1e-4  # largest sample, -80 dB of full scale


class Unusable(Exception):  # noqa: N818  # a verdict on a file, not an error of the program
    """A file is left out; the message is a kind ("silent") and, after a colon, details."""


class MeasuredStream(AudioStream):
    """Audio of a file, with its length and level, known once all of it was read."""

    samples = 0
    peak = 0.0  # the largest absolute sample

    def __iter__(self) -> Iterator[Tensor]:
        """Yield blocks float32 [channels, samples]."""
        for block in super().__iter__():
            self.samples += block.shape[-1]
            self.peak = max(self.peak, float(block.abs().max())) if block.numel() else self.peak
            yield block

    @property
    def silence(self) -> str | None:
        """The reason why the clip counts as silent, None if it does not."""
        if self.peak == 0:
            return "silent"
        if self.peak < SILENCE:
            return f"silent: its largest sample is {20 * math.log10(self.peak):.0f} dB of full scale"
        if self.swing < SILENCE:
            return f"silent: its samples have one constant value, up to {self.peak:.2g} of full scale"
        return None


@dataclass
class Clip:
    """A file that is read in the background, one block ahead of the codec.

    `metadata` and `audio` are known once a block was read; hash and shortfall of `audio` once all were.
    """

    file: AudioFile
    codec: Codec  # gives rate and channels
    template: CaptionRule | None  # for files without a caption
    rescale: bool  # scale floats in the range of integers to -1..1
    pool: ThreadPoolExecutor
    metadata: dict[str, Any] = field(init=False)
    audio: MeasuredStream = field(init=False)

    def __post_init__(self) -> None:
        self._reading = self._read()
        self._next: Future[Tensor | None] = self.pool.submit(next, self._reading, None)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the audio; raises `Unusable` if it is broken, silent, too short or without a caption."""
        while (block := self._next.result()) is not None:
            self._next = self.pool.submit(next, self._reading, None)
            yield block

    def _read(self) -> Iterator[Tensor]:
        file = self.file
        self.metadata = read_metadata(file, self.template)
        try:
            source = file.source()
            rate, channels = self.codec.sample_rate, self.codec.channels
            self.audio = MeasuredStream(source, rate, channels, *segment(file, source), rescale=self.rescale)
            yield from self.audio
        except WrongScaleError as error:
            raise Unusable(f"wrong scale: {error}") from error
        except UserError as error:
            raise Unusable(f"unreadable: {error}") from error
        if self.audio.samples < samples_per_frame(self.codec):
            raise Unusable(f"too short: {self.audio.samples} samples are less than one frame")
        if (silence := self.audio.silence) is not None:
            raise Unusable(silence)


def read_metadata(file: AudioFile, template: CaptionRule | None) -> dict[str, Any]:
    """Read caption and metadata of a clip; raises `Unusable` if it has no caption or cannot be read."""
    if file.problem is not None:
        raise Unusable(file.problem)
    try:
        source = file.source()
        require_audio_file(source)  # before its tags are read: a pipe would block
        described = describe(source, file.fields, template, whole=file.is_whole)
    except CaptionError as error:
        raise Unusable(str(error)) from error
    except UserError as error:
        raise Unusable(f"unreadable: {error}") from error
    metadata = {**described, "source": file.name, **({} if file.start is None else {"start": file.start})}
    try:
        metadata_bytes(metadata)
    except ValueError as error:
        raise Unusable(f"unusable caption or metadata: {error}") from error
    return metadata


def segment(file: AudioFile, source: FileSource) -> tuple[float, float | None]:
    """Return start and end (s) of a clip in its file `source`; an end of None is that of the file.

    Most downloads of MusicCaps and AudioCaps are already cut, and uncut ones may end early. Times in other lists are
    taken literally; `Unusable` is raised for times beyond the end of the file.
    """
    start, end = file.start or 0.0, file.end
    if file.start is None and end is None:
        return start, end
    seconds = audio_seconds(source)
    if file.by_id and end is not None and seconds <= end - start + _ALREADY_CUT:
        return 0.0, None
    if start >= seconds or (end is not None and end > seconds + _LATE and not file.by_id):
        raise Unusable(f"beyond the end of the file: it has {seconds:g} s")
    return start, end


def read_clips(
    files: Iterable[AudioFile], codec: Codec, template: CaptionRule | None, rescale: bool, workers: int
) -> Iterator[Clip]:
    """Yield clips in order, while the first blocks of the next `workers` are read in the background."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Clip] = deque()
    try:
        for file in files:
            waiting.append(Clip(file, codec, template, rescale, pool))
            if len(waiting) > workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
