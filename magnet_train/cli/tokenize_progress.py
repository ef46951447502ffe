"""The progress bar of `tokenize`.

Shapes: blocks of audio [channels, samples].
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from datamodules.tokenize.audio_files import AudioFile
from magnet_train.cli.console import ProgressBar, duration
from magnet_train.cli.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor


class TokenizeProgress:
    """The bar of a process's share: seconds of audio, multiple of real time, time left; hidden on all but rank 0.

    A thread reads the lengths of all files from their headers meanwhile; until then the bar counts files.
    """

    def __init__(self, files: Sequence[AudioFile], sample_rate: int, ranks: Ranks) -> None:
        share = "" if ranks.ranks == 1 else f" (rank 0 of {ranks.ranks})"
        self.bar = ProgressBar(f"tokenize{share}", "files", hidden=ranks.rank > 0)
        self.ends: list[float] | None = None  # seconds of the first 0, 1, 2, ... files, once all are known
        self._files, self._sample_rate = files, sample_rate
        self._done = 0  # files
        self._encoded = self._of_this_clip = 0.0  # seconds, by this process
        self._started = time.monotonic()
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        if not self.bar.hidden:
            threading.Thread(target=self._read_headers, daemon=True).start()
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.bar.stop()

    def skip(self, files: int) -> None:
        """Count files of an earlier run."""
        self._done += files
        self._show()

    def count_audio(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pass the blocks of the next file on and count their audio."""
        for block in blocks:
            yield block
            self._of_this_clip += block.shape[-1] / self._sample_rate
            self._show()

    def finish(self) -> None:
        """Count the file as done, tokenized or left out."""
        self._encoded += self._of_this_clip
        self._of_this_clip = 0.0
        self.skip(1)

    def _read_headers(self) -> None:
        from magnet_train.audio.recording import header_of

        ends = [0.0]
        for file in self._files:
            if self._stop.is_set():
                return
            seconds = 0.0
            if file.problem is None:
                whole, _ = header_of(file.path)
                seconds = (whole if file.end is None else min(whole, file.end)) - (file.start or 0.0)
            ends.append(ends[-1] + max(0.0, seconds))
        self.ends = ends

    def _show(self) -> None:
        encoded = self._encoded + self._of_this_clip
        speed = encoded / max(time.monotonic() - self._started, 1e-9)
        rate = f"  {speed:.1f}x real time" if encoded else ""
        files = f"{self._done} of {len(self._files)} files"
        if self.ends is None or not self.ends[-1]:
            self.bar.update(self._done, len(self._files), files + rate)
            return
        total = self.ends[-1]
        done = min(total, self.ends[self._done] + self._of_this_clip)
        left = f"  {duration((total - done) / speed)} left" if speed else ""
        self.bar.update(done, total, f"{duration(done)} of {duration(total)}  {files}{rate}{left}")
