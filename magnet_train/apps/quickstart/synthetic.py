"""What synthetic worlds share: random streams by split, the files of a split, and the score of chance."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from rich.progress import track

from magnet_train.audio import encode_wav
from magnet_train.storage.atomic_io import explain_disk_errors

T = TypeVar("T")
Audio = npt.NDArray[np.float32]  # [samples], mono
Scores = dict[str, float]  # by attribute, 0..1

SPLITS = ("train", "validation", "test")  # each has its own random streams, so that no two share a clip
SHUFFLES = 20  # of the captions, for chance


class SyntheticWorld(ABC):
    """Captions and clips, each a pure function of (seed, split, number); `seed` at least 0."""

    sample_rate: int  # Hz
    seconds: float  # in a clip

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @abstractmethod
    def captions(self, count: int, split: str = "train", *, unseen: bool = False) -> Sequence[Any]:
        """Return the first `count` captions of one of `SPLITS`; `unseen` ones are never shown in training."""

    @abstractmethod
    def clips(self, count: int, split: str = "train", *, unseen: bool = False) -> Iterator[tuple[Any, Audio]]:
        """Yield the first `count` captions of a split, each with its clip, float32 [samples]."""

    def write(self, folder: Path, count: int, split: str) -> None:
        """Write the first `count` clips of a split as SPLIT-N.wav (16 bit) with SPLIT-N.json beside each.

        Raises:
            UserError: The disk is full, or the folder is not writable.
        """
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            clips = track(self.clips(count, split), "synthesise", total=count)
            for index, (caption, audio) in enumerate(clips):
                path = folder / f"{split}-{index:05d}.wav"
                path.write_bytes(encode_wav(audio, self.sample_rate))
                path.with_suffix(".json").write_text(json.dumps(caption.to_dict()) + "\n", encoding="utf-8")

    def _rng(self, index: int, split: str, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(split), stream, index])


def accuracy_by(attributes: Sequence[str], captions: Sequence[Any], readings: Sequence[Any]) -> Scores:
    """Return how often each attribute is as captioned, 0..1; only captions that have the attribute count.

    Args:
        attributes: Names of attributes of a score.
        captions: Each with its `score`.
        readings: Scores.

    Raises:
        ValueError: The numbers of captions and readings differ, or no caption has some attribute.
    """
    right, total = dict.fromkeys(attributes, 0), dict.fromkeys(attributes, 0)
    for caption, reading in zip(captions, readings, strict=True):
        for name in attributes:
            if value := getattr(caption.score, name):
                total[name] += 1
                right[name] += value == getattr(reading, name)
    if not all(total.values()):
        raise ValueError(f"nothing to score: the captions have {total} clips with each attribute")
    return {name: right[name] / total[name] for name in attributes}


def shuffled_accuracy(
    accuracy: Callable[[Sequence[T], Any], Scores], captions: Sequence[T], readings: Any, seed: int
) -> Scores:
    """Return the accuracy of readings against shuffled captions, the mean over shuffles."""
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(SHUFFLES):
        order = rng.permutation(len(captions))
        scores.append(accuracy([captions[int(number)] for number in order], readings))
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    """Return a random choice."""
    return choices[int(rng.integers(len(choices)))]
