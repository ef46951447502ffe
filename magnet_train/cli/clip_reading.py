"""Read clips in blocks, ahead of the codec, and reject those that cannot be used.

Shapes: audio float32 [channels, samples].
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from magnet_train.audio import AudioStream, WrongScaleError, audio_seconds
from magnet_train.audio.recording import require_audio_file
from magnet_train.codecs.chunked import samples_per_frame
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.tokenize.audio_files import AudioFile
    from datamodules.tokenize.captions import CaptionTemplate
    from magnet_train.codecs import Codec

_ALREADY_CUT = 1.0  # seconds by which a file found by its id may exceed its clip and still be that clip alone
_LATE = 0.1  # seconds by which a clip may end behind its file: lists round, and mp3 pads
SILENCE = 1e-4  # largest sample, -80 dB of full scale


class Unusable(Exception):  # noqa: N818  # a verdict on a file, not an error of the program
    """The reason why a file is left out: a kind ("silent") and, after a colon, details."""


class Clip:
    """A file that is read in the background, one block ahead of the codec.

    `metadata` is known once a block was read, hash and shortfall once all were.

    Args:
        file: To read.
        codec: Gives rate and channels.
        template: For files without a caption.
        rescale: Scale floats in the range of integers to -1..1.
        pool: Threads to read in.
    """

    def __init__(
        self,
        file: AudioFile,
        codec: Codec,
        template: CaptionTemplate | None,
        rescale: bool,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.file = file
        self.samples = 0  # at the codec's rate
        self._codec, self._template, self._rescale, self._pool = codec, template, rescale, pool
        self.metadata: dict[str, Any] = {}
        self._stream: AudioStream | None = None
        self._reading = self._read()
        self._next: Future[Tensor | None] = pool.submit(next, self._reading, None)

    @property
    def audio_hash(self) -> str:
        """Hash of the decoded audio."""
        return "" if self._stream is None else self._stream.digest

    @property
    def shortfall(self) -> str | None:
        """Which part of the file could not be read, None if it is complete."""
        return None if self._stream is None else self._stream.shortfall

    def blocks(self) -> Iterator[Tensor]:
        """Yield the audio.

        Raises:
            Unusable: It has no caption, cannot be read, ends before its clip does, is silent or shorter than one
                token frame.
        """
        peak = 0.0
        while (block := self._next.result()) is not None:
            self._next = self._pool.submit(next, self._reading, None)
            self.samples += block.shape[-1]
            peak = max(peak, float(block.abs().max())) if block.numel() else peak
            yield block
        if self.samples < samples_per_frame(self._codec):
            raise Unusable(f"too short: {self.samples} samples are less than one frame")
        silence = "silent" if self._stream is None else silence_of(peak, self._stream.swing)
        if silence is not None:
            raise Unusable(silence)

    def _read(self) -> Iterator[Tensor]:
        from datamodules.tokenize.captions import CaptionError, describe

        file = self.file
        if file.problem is not None:
            raise Unusable(file.problem)
        try:
            require_audio_file(file.path)  # before its tags are read: a pipe would block
            described = describe(file.path, file.fields, self._template)
            start_field = {} if file.start is None else {"start": file.start}
            self.metadata = {**described, "source": file.name, **start_field}
            self._check_metadata()
            start, end = segment(file)
            rate, channels = self._codec.sample_rate, self._codec.channels
            self._stream = AudioStream(file.path, rate, channels, start, end, rescale=self._rescale)
            yield from self._stream
        except CaptionError as error:
            raise Unusable(str(error)) from error
        except WrongScaleError as error:
            raise Unusable(f"wrong scale: {error}") from error
        except UserError as error:
            raise Unusable(f"unreadable: {error}") from error

    def _check_metadata(self) -> None:
        from datamodules.shards.writer import metadata_bytes

        try:
            metadata_bytes(self.metadata)
        except ValueError as error:
            raise Unusable(f"unusable caption or metadata: {error}") from error


def silence_of(peak: float, swing: float) -> str | None:
    """Return why a clip counts as silent, None if it does not.

    Args:
        peak: The largest absolute sample at the codec's rate.
        swing: Difference of the highest and the lowest sample of the file.
    """
    if peak == 0:
        return "silent"
    if peak < SILENCE:
        return f"silent: its largest sample is {20 * math.log10(peak):.0f} dB of full scale"
    if swing < SILENCE:
        return f"silent: its samples have one constant value, up to {peak:.2g} of full scale"
    return None


def segment(file: AudioFile) -> tuple[float, float | None]:
    """Return start and end of a clip in its file, in seconds; an end of None is that of the file.

    Most downloads of MusicCaps and AudioCaps are cut already, and those that are not may end early. The times of any
    other list are taken literally.

    Raises:
        Unusable: The file ends before the clip does.
        UserError: The file cannot be read.
    """
    start, end = file.start or 0.0, file.end
    if file.start is None and end is None:
        return start, end
    seconds = audio_seconds(file.path)
    if file.by_id and end is not None and seconds <= end - start + _ALREADY_CUT:
        return 0.0, None
    if start >= seconds or (end is not None and end > seconds + _LATE and not file.by_id):
        raise Unusable(f"beyond the end of the file: it has {seconds:g} s")
    return start, end


def read_clips(
    files: Iterable[AudioFile],
    codec: Codec,
    template: CaptionTemplate | None,
    workers: int,
    *,
    rescale: bool = False,
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
