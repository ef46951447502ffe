"""The bar of `tokenize`: audio done of all there is, how many times faster than it plays, and the time left.

How much there is stands in the headers, which a thread reads meanwhile; until it knows, the bar counts files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from magnet_train.audio.recording import header_seconds
from magnet_train.cli.formatting import duration

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.tokenize.audio_files import AudioFile
    from magnet_train.cli.ranks import Ranks


class Meter:
    """A bar for one process's share; hidden but in the process of rank 0.

    Args:
        files: The share.
        sample_rate: Rate of the audio that is listened to (Hz).
        ranks: Which process this is.
    """

    def __init__(self, files: Sequence[AudioFile], sample_rate: int, ranks: Ranks) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        share = "" if ranks.ranks == 1 else f" (rank 0 of {ranks.ranks})"
        self._bar = Progress(
            TextColumn(f"tokenize{share}"),
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            disable=ranks.rank > 0,
        )
        self._task = self._bar.add_task(f"0 of {len(files)} files", total=len(files))
        self._files, self._sample_rate = files, sample_rate
        self._lengths: dict[str, float] | None = None  # seconds of each clip by its key, once all are known
        self._total = 0.0  # seconds
        self._keys_done: list[str] = []
        self._counted, self._counted_seconds = 0, 0.0  # of those keys, and how long they are
        self._heard = self._of_this_clip = 0.0  # seconds, by this process
        self._started = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._bar.start()
        self._started = time.monotonic()
        if not self._bar.disable:
            threading.Thread(target=self._look_at_headers, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._bar.stop()

    def skip(self, files: Iterable[AudioFile]) -> None:
        """Count files that were done before."""
        self._keys_done += [file.key for file in files]
        self._show()

    def listen(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pass blocks [channels, samples] on and count their audio."""
        for block in blocks:
            yield block
            self._of_this_clip += block.shape[-1] / self._sample_rate
            self._show()

    def finish(self, file: AudioFile) -> None:
        """Count a file as done, whatever became of it."""
        self._heard += self._of_this_clip
        self._of_this_clip = 0.0
        self._keys_done.append(file.key)
        self._show()

    def _look_at_headers(self) -> None:
        lengths: dict[str, float] = {}
        for file in self._files:
            if self._stop.is_set():
                return
            lengths[file.key] = _seconds(file)
        self._total = sum(lengths.values())
        self._lengths = lengths

    def _show(self) -> None:
        heard = self._heard + self._of_this_clip
        speed = heard / max(time.monotonic() - self._started, 1e-9)
        rate = f"  {speed:.1f}x real time" if heard else ""
        files = f"{len(self._keys_done)} of {len(self._files)} files"
        if self._lengths is None or not self._total:
            self._bar.update(self._task, completed=len(self._keys_done), description=files + rate)
            return
        for key in self._keys_done[self._counted :]:
            self._counted_seconds += self._lengths[key]
        self._counted = len(self._keys_done)
        done = min(self._total, self._counted_seconds + self._of_this_clip)
        left = f"  {duration((self._total - done) / speed)} left" if speed else ""
        self._bar.update(
            self._task,
            total=self._total,
            completed=done,
            description=f"{duration(done)} of {duration(self._total)}  {files}{rate}{left}",
        )


def _seconds(file: AudioFile) -> float:
    """Return the length of a clip as far as list and header tell, 0 if they do not."""
    if file.problem is not None:
        return 0.0
    whole = header_seconds(file.path)
    end = whole if file.end is None else min(whole, file.end)
    return max(0.0, end - (file.start or 0.0))
