"""The nearest training clip in token space, which shows whether generated clips are copies of training data.

Clips are compared by their first codebook, which carries most of the sound. The distance of a clip from a training clip
is the share of its frames whose token differs, at the best alignment in time: 0 for a part of the training clip, about
1 for unrelated clips. Frames outside the training clip count as different.

Shapes: tokens of the first codebook, integers [T]; n clips to be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.integer[Any]]

_PIECE = 2048  # frames of a training clip that are compared at a time
_MOST_CELLS = 2**22  # alignments of clips counted at a time
_MOST_EQUAL = 2**21  # pairs of equal tokens listed at a time, unless one frame has more
_LOW = 0.05  # quantile reported beside the median


@dataclass(frozen=True)
class NearestClip:
    """The nearest training clip."""

    distance: float  # 0..1
    key: str  # of the training clip
    frame: int  # of the training clip at which the clip begins; negative where it begins before


class NearestSearch:
    """Find the nearest training clip of each of n clips; training clips are added one by one.

    Memory is bounded, apart from the n clips. Time is proportional to the number of pairs of equal tokens, for random
    tokens a small part of all pairs of frames.

    Args:
        clips: Tokens of each clip, one frame or more.
    """

    def __init__(self, clips: Sequence[Tokens]) -> None:
        self._groups = [_Group(part) for part in _parts(clips)]

    def add(self, key: str, tokens: Tokens) -> None:
        """Compare a training clip with all clips."""
        for group in self._groups:
            group.add(key, tokens)

    @property
    def found(self) -> list[NearestClip]:
        """The nearest training clip of each clip, the first of equally near ones; call `add` before."""
        return [nearest for group in self._groups for nearest in group.found()]


def _parts(clips: Sequence[Tokens]) -> Iterator[Sequence[Tokens]]:
    """Divide clips into parts of at most `_MOST_CELLS` alignments with a piece of a training clip."""
    first, longest = 0, 0
    for number, clip in enumerate(clips):
        longest = max(longest, len(clip))
        if number > first and (number + 1 - first) * (_PIECE + 2 * longest) > _MOST_CELLS:
            yield clips[first:number]
            first, longest = number, len(clip)
    if first < len(clips):
        yield clips[first:]


class _Group:
    """Some clips, and for each token the frames that have it."""

    def __init__(self, clips: Sequence[Tokens]) -> None:
        self._lengths = np.array([len(clip) for clip in clips])
        self._longest = int(self._lengths.max())
        tokens = np.concatenate(clips).astype(np.int64)
        order = np.argsort(tokens, kind="stable")
        self._clip = np.repeat(np.arange(len(clips)), self._lengths)[order]
        self._frame = np.concatenate([np.arange(length) for length in self._lengths])[order]
        # the frames with a token lie at starts[token] .. starts[token + 1] of the two arrays above
        self._starts = np.searchsorted(tokens[order], np.arange(int(tokens.max()) + 2))
        self._equal = np.full(len(clips), -1)  # frames
        self._nearest: list[tuple[str, int]] = [("", 0)] * len(clips)

    def add(self, key: str, tokens: Tokens) -> None:
        # pieces overlap by the longest clip, so that each alignment lies within one
        for first in range(0, len(tokens), _PIECE):
            piece = tokens[first : first + _PIECE + self._longest].astype(np.int64)
            equal = self._count(piece)
            best = equal.argmax(axis=1)
            most = equal[np.arange(len(best)), best]
            for clip in np.flatnonzero(most > self._equal):
                self._equal[clip] = most[clip]
                self._nearest[clip] = key, first + int(best[clip]) - (self._longest - 1)

    def _count(self, piece: Tokens) -> npt.NDArray[np.int64]:
        """Return the number of equal tokens of each clip at each alignment, [clips, alignments].

        In alignment a, frame 0 of a clip lies at frame a - (longest - 1) of the piece.
        """
        width = len(piece) + self._longest - 1
        counts = np.zeros(len(self._lengths) * width, dtype=np.int64)
        known = np.flatnonzero(piece < len(self._starts) - 1)
        begins, ends = self._starts[piece[known]], self._starts[piece[known] + 1]
        cells = self._clip * width - self._frame + (self._longest - 1)
        for part in _runs(ends - begins):
            sizes = ends[part] - begins[part]
            before = np.cumsum(sizes) - sizes
            rows = np.arange(int(sizes.sum())) + np.repeat(begins[part] - before, sizes)
            found = cells[rows] + np.repeat(known[part], sizes)
            counts += np.bincount(found, minlength=len(counts))
        return counts.reshape(len(self._lengths), width)

    def found(self) -> Iterator[NearestClip]:
        for equal, length, (key, frame) in zip(self._equal, self._lengths, self._nearest, strict=True):
            yield NearestClip(1 - float(equal) / float(length), key, frame)


def _runs(sizes: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Divide a list of sizes into runs with a sum of at most `_MOST_EQUAL`, or of a single larger size."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        start = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, start + _MOST_EQUAL, side="right")))
        yield slice(first, last)
        first = last


@dataclass(frozen=True)
class TokenDistances:
    """Distances of several clips from their nearest training clips, 0..1."""

    median: float
    low: float  # the 5 % quantile: the nearest clips
    clips: int

    @classmethod
    def of(cls, distances: Sequence[float]) -> Self:
        """Summarize the distances of one clip or more."""
        low, median = np.quantile(distances, [_LOW, 0.5])
        return cls(float(median), float(low), len(distances))
