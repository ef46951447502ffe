"""What the whole band plays, and captions for it.

Drums and bass are those of `drums_and_bass.captions`; keys have an instrument (4), a chord (major or minor on the root
of the bass) and a figure (4). All parts share tempo, feel and root. A clip has one, two or all three parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np

from magnet_train.apps.quickstart.drums_and_bass.captions import (
    BASS_PHRASES,
    DRUM_PHRASES,
    HATS,
    HELD_OUT_BASSES,
    HELD_OUT_DRUMS,
    LINES,
    PATTERNS,
    ROOTS,
    TEMPO_PHRASES,
    TEMPOS,
)
from magnet_train.apps.quickstart.synthetic import pick

ATTRIBUTES = ("parts", "tempo", "feel", "pattern", "hats", "root", "line", "instrument", "chord", "figure")
PARTS: dict[str, tuple[str, ...]] = {  # attributes of each part beside tempo and feel
    "drums": ("pattern", "hats"),
    "bass": ("root", "line"),
    "keys": ("root", "instrument", "chord", "figure"),
}
SETS = tuple(chosen for size in (1, 2, 3) for chosen in combinations(PARTS, size))  # of parts, in a clip

# Each value with its three synonyms.
FEELS: dict[str, tuple[str, str, str]] = {
    "straight": ("even eighths", "no swing", "even feel"),
    "swung": ("swung eighths", "with swing", "shuffle feel"),
}
INSTRUMENTS: dict[str, tuple[str, str, str]] = {
    "pluck": ("guitar", "harp", "plucked strings"),
    "organ": ("organ", "church organ", "hammond"),
    "pad": ("pad", "soft synth", "warm synth"),
    "lead": ("lead", "square synth", "buzzing synth"),
}
CHORDS: dict[str, tuple[str, str, str]] = {
    "major": ("major", "happy", "bright"),
    "minor": ("minor", "sad", "dark"),
}
FIGURES: dict[str, tuple[str, str, str]] = {
    "block": ("block chord", "ringing chord", "resting chord"),
    "stabs": ("stabs", "chord hits", "short chords"),
    "rising": ("rising arpeggio", "climbing arpeggio", "upward arpeggio"),
    "falling": ("falling arpeggio", "descending arpeggio", "downward arpeggio"),
}

KEYS_PHRASES = (
    "{chord} {figure} on {instrument} in {root}",
    "{instrument} with {chord} {figure} in {root}",
    "{instrument} in {root}: {chord} {figure}",
)
JOINS = {
    1: ("{}",),
    2: ("{} and {}", "{} with {}", "{} beside {}"),
    3: ("{}, {} and {}", "{} with {} and {}"),
}

# Never shown in training, though each pair of their values is: tempo, instrument, figure; two at each tempo.
HELD_OUT_KEYS = (
    ("75", "pluck", "rising"),
    ("75", "pad", "stabs"),
    ("94", "organ", "falling"),
    ("94", "lead", "block"),
    ("125", "pad", "rising"),
    ("125", "pluck", "block"),
    ("150", "lead", "falling"),
    ("150", "organ", "stabs"),
)


@dataclass(frozen=True, order=True)
class Score:
    """What a clip plays: keys of the tables, "" where a part is missing or, for the feel, does not tell."""

    tempo: str
    feel: str = ""
    pattern: str = ""
    hats: str = ""
    root: str = ""
    line: str = ""
    instrument: str = ""
    chord: str = ""
    figure: str = ""

    @property
    def played(self) -> tuple[str, ...]:
        """Return the parts, keys of `PARTS`."""
        told = {"drums": self.pattern, "bass": self.line, "keys": self.instrument}
        return tuple(part for part in PARTS if told[part])

    @property
    def parts(self) -> str:
        """Return the parts as a text: "drums and keys"; "" without any."""
        return " and ".join(self.played)

    def only(self, part: str) -> Score:
        """Return the score of one of the parts."""
        values = {name: getattr(self, name) for name in PARTS[part]}
        return with_feel(Score(self.tempo, **values), self.feel)


@dataclass(frozen=True)
class Caption:
    """A sentence and the score that it describes."""

    text: str
    score: Score

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the `.json` beside a clip: `text`, and the values as metadata."""
        return {"text": self.text} | {name: getattr(self.score, name) for name in ATTRIBUTES}


def with_feel(score: Score, feel: str) -> Score:
    """Return the score with a feel, or with "" if it plays nothing between the beats."""
    still = score.pattern in ("", "house") and score.hats in ("", "none")
    still &= score.line in ("", "held", "walking") and score.figure in ("", "block")
    return replace(score, feel="" if still else feel)


@cache
def part_scores(part: str, *, unseen: bool | None = None) -> tuple[Score, ...]:
    """Return what a part can play, by default in all; else what training shows (False), or what it does not (True)."""
    if part == "drums":
        values = [((t, p, h), Score(t, pattern=p, hats=h)) for t, p, h in product(TEMPOS, PATTERNS, HATS)]
    elif part == "bass":
        values = [((t, r, n), Score(t, root=r, line=n)) for t, r, n in product(TEMPOS, ROOTS, LINES)]
    else:
        values = [
            ((t, i, f), Score(t, root=r, instrument=i, chord=c, figure=f))
            for t, r, i, c, f in product(TEMPOS, ROOTS, INSTRUMENTS, CHORDS, FIGURES)
        ]
    held_out = HELD_OUT_DRUMS + HELD_OUT_BASSES + HELD_OUT_KEYS
    shown = [score for key, score in values if unseen is None or (key in held_out) == unseen]
    return tuple(sorted({with_feel(score, feel) for score in shown for feel in FEELS}))


def draw_score(parts: tuple[str, ...], rng: np.random.Generator, *, unseen: bool = False) -> Score:
    """Return a random score of some parts; if `unseen`, each part is one that training never shows."""
    drawn, feel = Score(pick(tuple(TEMPOS), rng)), pick(tuple(FEELS), rng)
    for part in parts:
        fitting = [
            score
            for score in part_scores(part, unseen=unseen)
            if score.tempo == drawn.tempo and not (drawn.root and score.root and score.root != drawn.root)
        ]
        chosen = pick(sorted({replace(score, feel="") for score in fitting}), rng)
        drawn = replace(drawn, **{name: getattr(chosen, name) for name in PARTS[part]})
    return with_feel(drawn, feel)


def caption_for(score: Score, rng: np.random.Generator) -> Caption:
    """Return a random caption of a score."""
    phrases = [_phrase(part, score, rng) for part in score.played]
    order = [phrases[int(place)] for place in rng.permutation(len(phrases))]
    tempo = pick(TEMPOS[score.tempo], rng)
    if score.feel:
        tempo = pick(("{}, {}", "{} {}"), rng).format(tempo, pick(FEELS[score.feel], rng))
    parts = pick(JOINS[len(order)], rng).format(*order)
    return Caption(pick(TEMPO_PHRASES, rng).format(parts=parts, tempo=tempo), score)


def _phrase(part: str, score: Score, rng: np.random.Generator) -> str:
    if part == "drums":
        words = {"pattern": pick(PATTERNS[score.pattern], rng), "hats": pick(HATS[score.hats], rng)}
        return pick(DRUM_PHRASES, rng).format(**words)
    if part == "bass":
        words = {"line": pick(LINES[score.line], rng), "root": pick(ROOTS[score.root], rng)}
        return pick(BASS_PHRASES, rng).format(**words)
    words = {
        "instrument": pick(INSTRUMENTS[score.instrument], rng),
        "chord": pick(CHORDS[score.chord], rng),
        "figure": pick(FIGURES[score.figure], rng),
        "root": score.root,
    }
    return pick(KEYS_PHRASES, rng).format(**words)
