"""Play the whole band from a seed, all together or part by part.

Shapes: audio float32 [samples], mono, 16 kHz, full scale -1..1, beyond which few samples of one clip in thousands lie.
A clip lasts 3.2 s (160 token frames at 50 Hz) and begins with a bar; each note begins with a token frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from magnet_train.apps.quickstart.band.captions import (
    SETS,
    Caption,
    Score,
    caption_for,
    draw_score,
)
from magnet_train.apps.quickstart.band.keys import INSTRUMENTS
from magnet_train.apps.quickstart.drums_and_bass.instruments import (
    SAMPLE_RATE,
    Floats,
    bass,
    hat,
    in_room,
    kick,
    snare,
)
from magnet_train.apps.quickstart.drums_and_bass.world import (
    FRAME,
    HATS,
    LINES,
    PATTERNS,
    ROOTS,
    SAMPLES,
    SIXTEENTH,
)
from magnet_train.apps.quickstart.synthetic import Audio, SyntheticWorld
from magnet_train.audio import encode_wav
from magnet_train.storage.atomic_io import explain_disk_errors

FRAMES = SAMPLES // FRAME
KEYS_OCTAVE = 4  # times the root of the bass
CHORDS = {"major": (0, 4, 7), "minor": (0, 3, 7)}  # semitones above the root
FIGURES: dict[str, tuple[tuple[int, int, tuple[int, ...]], ...]] = {
    # (sixteenth of the bar, length in sixteenths, notes of the chord; 3 is the octave)
    "block": ((0, 16, (0, 1, 2)),),
    "stabs": tuple((step, 2, (0, 1, 2)) for step in (0, 6, 8, 14)),
    "rising": tuple((2 * step, 2, (step % 4,)) for step in range(8)),
    "falling": tuple((2 * step, 2, (3 - step % 4,)) for step in range(8)),
}
LEVELS = {"pluck": 0.20, "organ": 0.15, "pad": 0.18, "lead": 0.15}  # of one note; of three, half as much each


class Note(NamedTuple):
    """A note or a hit."""

    frame: int  # token frame of its beginning
    sound: str  # "kick", "snare", "hat", "bass" or an instrument
    force: float
    frequency: float = 0.0  # Hz
    seconds: float = 0.0


class BandWorld(SyntheticWorld):
    """Captions and clips, each a pure function of (seed, split, number); `seed` at least 0."""

    sample_rate = SAMPLE_RATE
    seconds = SAMPLES / SAMPLE_RATE

    def captions(self, count: int, split: str = "train", *, unseen: bool = False) -> list[Caption]:
        """Return the first `count` captions of one of `SPLITS`; `unseen` ones are of the combinations held out."""
        return [self._caption(index, split, unseen) for index in range(count)]

    def clips(
        self, count: int, split: str = "train", *, unseen: bool = False
    ) -> Iterator[tuple[Caption, Audio]]:
        """Yield the first `count` captions of a split, each with its clip, float32 [samples]."""
        for index, caption in enumerate(self.captions(count, split, unseen=unseen)):
            yield caption, play(caption.score, self._rng(index, split, stream=2 + unseen))

    def stems(self, index: int, split: str = "train") -> Iterator[tuple[Caption, Audio]]:
        """Yield the parts of a clip, each alone and with its own caption; their sum is the clip."""
        score = self._caption(index, split).score
        words = self._rng(index, split, stream=4)
        for part, audio in play_parts(score, self._rng(index, split, stream=2)).items():
            yield caption_for(score.only(part), words), audio

    def write_stems(self, folder: Path, count: int, split: str) -> None:
        """Write the parts of the first `count` clips as SPLIT-N-PART.wav (16 bit) with SPLIT-N-PART.json beside each.

        Raises:
            UserError: The disk is full, or the folder is not writable.
        """
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                for caption, audio in self.stems(index, split):
                    path = folder / f"{split}-{index:05d}-{caption.score.parts}.wav"
                    path.write_bytes(encode_wav(audio, SAMPLE_RATE))
                    path.with_suffix(".json").write_text(
                        json.dumps(caption.to_dict()) + "\n", encoding="utf-8"
                    )

    def _caption(self, index: int, split: str, unseen: bool = False) -> Caption:
        rng = self._rng(index, split, stream=int(unseen))
        return caption_for(draw_score(SETS[index % len(SETS)], rng, unseen=unseen), rng)


def play(score: Score, rng: np.random.Generator | None = None) -> Audio:
    """Return a clip, the sum of `play_parts`, float32 [samples]."""
    return np.asarray(np.sum(list(play_parts(score, rng).values()), axis=0, dtype=np.float32))


def play_parts(score: Score, rng: np.random.Generator | None = None) -> dict[str, Audio]:
    """Return each part of a clip, float32 [samples].

    `rng` draws the level of the clip, the tuning of each part, and the force of each note; without it they are the
    same each time.
    """
    level = 0.5 * 10 ** (_draw(rng, 3.0) / 20)
    parts = {}
    for part in score.played:
        audio, tuning = np.zeros(SAMPLES + SAMPLE_RATE), 2 ** (_draw(rng, 5.0) / 1200)
        for note in notes(score, part):
            tone = sound(note.sound, note.frequency * tuning, note.seconds)[: SAMPLES - note.frame * FRAME]
            start = note.frame * FRAME
            audio[start : start + len(tone)] += note.force * (1 + _draw(rng, 0.1)) * tone
        parts[part] = (level * in_room(audio[:SAMPLES])).astype(np.float32)
    return parts


def notes(score: Score, part: str) -> Iterator[Note]:
    """Yield all notes that a part plays in a clip, bar by bar."""
    for first in range(0, FRAMES, _moment(score, 16)):
        for note in _bar(score, part):
            if first + note.frame < FRAMES:
                yield note._replace(frame=first + note.frame)


def _bar(score: Score, part: str) -> Iterator[Note]:
    if part == "drums":
        kicks, snares = PATTERNS[score.pattern]
        yield from (Note(_moment(score, step), "kick", 0.5) for step in kicks)
        yield from (Note(_moment(score, step), "snare", 0.25 if step % 4 else 0.4) for step in snares)
        for step in HATS[score.hats]:
            yield Note(_moment(score, step), "hat", (0.28, 0.24)[step % 2])
    elif part == "bass":
        for step, length, semitones in LINES[score.line]:
            frequency = ROOTS[score.root] * 2 ** (semitones / 12)
            yield Note(_moment(score, step), "bass", 0.26, frequency, _seconds(score, step, length))
    else:
        chord = (*CHORDS[score.chord], 12)
        for step, length, numbers in FIGURES[score.figure]:
            force = LEVELS[score.instrument] * (0.5 if len(numbers) > 1 else 1)
            for number in numbers:
                frequency = KEYS_OCTAVE * ROOTS[score.root] * 2 ** (chord[number] / 12)
                seconds = _seconds(score, step, length)
                yield Note(_moment(score, step), score.instrument, force, frequency, seconds)


@cache
def _drum(name: str) -> Floats:
    return {"kick": kick, "snare": snare, "hat": hat}[name]()


def sound(name: str, frequency: float, seconds: float) -> Floats:
    """Return a note or a hit at force 1, without a room."""
    if name in INSTRUMENTS:
        return INSTRUMENTS[name](frequency, seconds)
    return bass(frequency, seconds) if name == "bass" else _drum(name)


def _moment(score: Score, step: int) -> int:
    """Return the token frame of a sixteenth; swing holds back the second half of each beat to two thirds of it."""
    sixteenth = SIXTEENTH[score.tempo] // FRAME
    if score.feel != "swung":
        return step * sixteenth
    beat, rest = divmod(step, 4)
    late = round(8 * sixteenth / 3)
    return 4 * sixteenth * beat + (0, late // 2, late, (late + 4 * sixteenth) // 2)[rest]


def _seconds(score: Score, step: int, length: int) -> float:
    return 0.92 * (_moment(score, step + length) - _moment(score, step)) * FRAME / SAMPLE_RATE


def _draw(rng: np.random.Generator | None, most: float) -> float:
    return 0.0 if rng is None else float(rng.uniform(-most, most))
