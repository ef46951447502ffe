"""The progress bar of `tokenize`: seconds of audio done, multiple of real time, and time left.

A thread reads the total from the headers meanwhile; until then the bar counts files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from magnet_train.audio.recording import header_seconds
from magnet_train.cli.console import ProgressBar, duration

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.tokenize.audio_files import AudioFile
    from magnet_train.cli.ranks import Ranks


class TokenizeProgress:
    """A bar for one process's share; hidden in all but the process of rank 0.

    Args:
        files: The share.
        sample_rate: Of the audio that is counted (Hz).
        ranks: Which process this is.
    """

    def __init__(self, files: Sequence[AudioFile], sample_rate: int, ranks: Ranks) -> None:
        share = "" if ranks.ranks == 1 else f" (rank 0 of {ranks.ranks})"
        self.bar = ProgressBar(f"tokenize{share}", "files", hidden=ranks.rank > 0)
        self.lengths: dict[str, float] | None = None  # seconds of each clip by its key, once all are known
        self._files, self._sample_rate = files, sample_rate
        self._total = 0.0  # seconds of all of them
        self._keys_done: list[str] = []
        self._summed, self._summed_seconds = 0, 0.0  # how many of those keys, and their seconds
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

    def skip(self, files: Iterable[AudioFile]) -> None:
        """Count files of an earlier run."""
        self._keys_done += [file.key for file in files]
        self._show()

    def count_audio(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pass blocks [channels, samples] on and count their audio."""
        for block in blocks:
            yield block
            self._of_this_clip += block.shape[-1] / self._sample_rate
            self._show()

    def finish(self, file: AudioFile) -> None:
        """Count a file as done, tokenized or left out."""
        self._encoded += self._of_this_clip
        self._of_this_clip = 0.0
        self._keys_done.append(file.key)
        self._show()

    def _read_headers(self) -> None:
        lengths: dict[str, float] = {}
        for file in self._files:
            if self._stop.is_set():
                return
            lengths[file.key] = _seconds(file)
        self._total = sum(lengths.values())
        self.lengths = lengths

    def _show(self) -> None:
        encoded = self._encoded + self._of_this_clip
        speed = encoded / max(time.monotonic() - self._started, 1e-9)
        rate = f"  {speed:.1f}x real time" if encoded else ""
        files = f"{len(self._keys_done)} of {len(self._files)} files"
        if self.lengths is None or not self._total:
            self.bar.update(len(self._keys_done), len(self._files), files + rate)
            return
        self._summed_seconds += sum(self.lengths[key] for key in self._keys_done[self._summed :])
        self._summed = len(self._keys_done)
        done = min(self._total, self._summed_seconds + self._of_this_clip)
        left = f"  {duration((self._total - done) / speed)} left" if speed else ""
        self.bar.update(
            done, self._total, f"{duration(done)} of {duration(self._total)}  {files}{rate}{left}"
        )


def _seconds(file: AudioFile) -> float:
    """Return the length of a clip by list and header, 0 if neither gives it."""
    if file.problem is not None:
        return 0.0
    whole = header_seconds(file.path)
    end = whole if file.end is None else min(whole, file.end)
    return max(0.0, end - (file.start or 0.0))
