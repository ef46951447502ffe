"""Hear clips of drums and bass that begin anywhere in a bar.

The oracle of the quickstart compares a clip with each score played from the start of a bar. Here each score is played for
longer, and the clip is compared with every cut of it at a token frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from unittest import mock

import numpy as np
import numpy.typing as npt

from magnet_train.apps.quickstart.drums_and_bass import oracle, world
from magnet_train.apps.quickstart.drums_and_bass.captions import (
    HATS,
    LINES,
    PATTERNS,
    ROOTS,
    TEMPOS,
    Caption,
    Score,
)

Floats = npt.NDArray[np.floating]
Audio = npt.NDArray[np.float32]

CLIP = world.SAMPLES // oracle.HOP  # frames of the oracle in a clip
FRAME = world.FRAME // oracle.HOP  # the same in a token frame
LONGEST_BAR = 160  # token frames


class LongBandWorld(world.DrumsAndBassWorld):
    """The band in clips of twice the length."""

    seconds = 2 * world.DrumsAndBassWorld.seconds

    def clips(
        self, count: int, split: str = "train", *, unseen: bool = False
    ) -> Iterator[tuple[Caption, Audio]]:
        """Yield the first `count` captions of a split, each with its clip, float32 [samples]."""
        for index, caption in enumerate(self.captions(count, split, unseen=unseen)):
            yield caption, play_long(caption.score, self._rng(index, split, stream=4 + unseen))


def play_long(score: Score, rng: np.random.Generator | None = None) -> Audio:
    """Return a clip of twice the length, float32 [samples]; see `world.play`."""
    with mock.patch.object(world, "SAMPLES", 2 * world.SAMPLES):
        return world.play(score, rng)


def read_clips(clips: Iterable[Floats]) -> list[Score]:
    """Return what the first 3.2 s of each clip play, wherever in the bar it begins; a part that is not heard is ""."""
    return [_read_clip(audio) for audio in clips]


def _read_clip(audio: Floats) -> Score:
    audio = np.asarray(audio[: world.SAMPLES], dtype=np.float64)
    drums = bass = Score("")
    features = _drums(audio)
    if features[:, 1].any():  # every pattern has a snare
        drums = _nearest(features, *_known_drums(), centred=True)[0]
    score, similarity = _nearest(_basses(audio), *_known_basses(), centred=False)
    if similarity > oracle.ALIKE:
        bass = score
    return Score(drums.tempo or bass.tempo, drums.pattern, drums.hats, bass.root, bass.line)


def _nearest(features: Floats, scores: list[Score], known: Floats, *, centred: bool) -> tuple[Score, float]:
    """Return the score whose best cut is most similar to features [CLIP, bands], and the similarity.

    `known` is [scores, 2 CLIP, bands]; if `centred`, each cut loses its mean over frames.
    """
    features = (features / max(1e-9, float(np.linalg.norm(features)))).astype(np.float32)
    best = np.full(len(scores), -1.0)
    for cut in _cuts(known):
        squares = np.einsum("sfb,sfb->s", cut, cut)
        if centred:
            squares = squares - CLIP * (cut.mean(axis=1) ** 2).sum(axis=1)
        product_ = cut.reshape(len(scores), -1) @ features.ravel()
        best = np.maximum(best, product_ / np.sqrt(np.maximum(squares, 1e-9)))
    index = int(best.argmax())
    return scores[index], float(best[index])


def _cuts(known: Floats) -> Iterator[Floats]:
    for start in range(0, LONGEST_BAR * FRAME, FRAME):
        yield known[:, start : start + CLIP]


def _drums(audio: Floats) -> Floats:
    """Return the features of drums, [frames, 3], each column without its mean."""
    return oracle.drum_features(audio).reshape(-1, 3)[: len(audio) // oracle.HOP]


def _basses(audio: Floats) -> Floats:
    """Return the features of a bass, [frames, SEMITONES]."""
    return oracle.bass_features(audio).reshape(-1, oracle.SEMITONES)[: len(audio) // oracle.HOP]


@cache
def _known_drums() -> tuple[list[Score], Floats]:
    scores = [Score(*values) for values in product(TEMPOS, PATTERNS, HATS)]
    return scores, np.stack([_drums(play_long(score)) for score in scores]).astype(np.float32)


@cache
def _known_basses() -> tuple[list[Score], Floats]:
    scores = [Score(tempo, root=root, line=line) for tempo, root, line in product(TEMPOS, ROOTS, LINES)]
    return scores, np.stack([_basses(play_long(score)) for score in scores]).astype(np.float32)
