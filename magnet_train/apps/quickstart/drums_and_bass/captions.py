"""What drums and bass play, and captions for it.

Drums have a tempo (4), a pattern (4) and hats (4); a bass has a tempo, a root (5) and a line (4). A clip has drums, a
bass, or both. A caption names each value by one of three synonyms, in one of several phrases. No article
stands in it, since "a" is a root.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from magnet_train.apps.quickstart.synthetic import pick

ATTRIBUTES = ("parts", "tempo", "pattern", "hats", "root", "line")

# Each value with its three synonyms.
TEMPOS: dict[str, tuple[str, str, str]] = {  # a sixteenth note lasts 10, 8, 6 or 5 token frames of 20 ms
    "75": ("75 bpm", "slow pace", "calm tempo"),
    "94": ("94 bpm", "medium pace", "moderate tempo"),
    "125": ("125 bpm", "fast pace", "upbeat tempo"),
    "150": ("150 bpm", "racing pace", "furious tempo"),
}
PATTERNS: dict[str, tuple[str, str, str]] = {
    "rock": ("rock", "straight", "pop"),
    "house": ("house", "disco", "four-on-the-floor"),
    "half-time": ("half-time", "heavy", "dragging"),
    "breakbeat": ("breakbeat", "broken", "syncopated"),
}
HATS: dict[str, tuple[str, str, str]] = {
    "none": ("no hats", "kick and snare only", "bare"),
    "eighths": ("eighth-note hats", "steady hats", "ticking hats"),
    "sixteenths": ("sixteenth-note hats", "busy hats", "shimmering hats"),
    "offbeats": ("offbeat hats", "hats between the beats", "skipping hats"),
}
ROOTS: dict[str, tuple[str, str, str]] = {
    "e": ("in e", "on low e", "around e"),
    "g": ("in g", "on low g", "around g"),
    "a": ("in a", "on the a string", "around a"),
    "c": ("in c", "on middle c", "around c"),
    "d": ("in d", "on the d string", "around d"),
}
LINES: dict[str, tuple[str, str, str]] = {
    "held": ("held", "sustained", "long"),
    "driving": ("driving", "pumping", "repeated"),
    "octaves": ("octave", "bouncing", "jumping"),
    "walking": ("walking", "strolling", "wandering"),
}

DRUM_PHRASES = ("{pattern} drums, {hats}", "{pattern} kit with {hats}", "{pattern} groove: {hats}")
BASS_PHRASES = ("{line} bass {root}", "{line} bass line {root}", "{line} bassline {root}")
TEMPO_PHRASES = ("{parts}, {tempo}", "{parts}, at {tempo}", "{tempo}: {parts}")
JOINS = ("{drums} and {bass}", "{drums} under {bass}", "{bass} over {drums}")

# Never shown in training, though each pair of their values is; two at each tempo, so that none becomes rare.
HELD_OUT_DRUMS = (
    ("75", "house", "eighths"),
    ("75", "rock", "offbeats"),
    ("94", "half-time", "sixteenths"),
    ("94", "breakbeat", "none"),
    ("125", "half-time", "none"),
    ("125", "breakbeat", "eighths"),
    ("150", "rock", "sixteenths"),
    ("150", "house", "offbeats"),
)
HELD_OUT_BASSES = (
    ("75", "e", "walking"),
    ("75", "c", "octaves"),
    ("94", "a", "held"),
    ("94", "d", "driving"),
    ("125", "g", "octaves"),
    ("125", "e", "held"),
    ("150", "c", "driving"),
    ("150", "a", "walking"),
)


@dataclass(frozen=True, order=True)
class Score:
    """What a clip plays: keys of the tables above, "" where a part is missing."""

    tempo: str
    pattern: str = ""
    hats: str = ""
    root: str = ""
    line: str = ""

    @property
    def parts(self) -> str:
        """Return "drums", "bass" or "both"."""
        if self.pattern and self.root:
            return "both"
        return "drums" if self.pattern else "bass" if self.root else ""


@dataclass(frozen=True)
class Caption:
    """A sentence and the score that it describes."""

    text: str
    score: Score

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the `.json` beside a clip: `text`, and the values as metadata."""
        return {"text": self.text} | {name: getattr(self.score, name) for name in ATTRIBUTES}


def drum_scores(*, unseen: bool = False) -> list[Score]:
    """Return all drums that training shows, or all that it does not."""
    values = product(TEMPOS, PATTERNS, HATS)
    return [Score(*triple) for triple in values if (triple in HELD_OUT_DRUMS) == unseen]


def bass_scores(*, unseen: bool = False) -> list[Score]:
    """Return all bass parts that training shows, or all that it does not."""
    values = product(TEMPOS, ROOTS, LINES)
    return [
        Score(tempo, root=root, line=line)
        for tempo, root, line in values
        if ((tempo, root, line) in HELD_OUT_BASSES) == unseen
    ]


def draw_score(parts: str, rng: np.random.Generator, *, unseen: bool = False) -> Score:
    """Return a random score of "drums", "bass" or "both"; if `unseen`, each part is one that training never shows."""
    drums = pick(drum_scores(unseen=unseen), rng)
    basses = bass_scores(unseen=unseen)
    if parts == "drums":
        return drums
    if parts == "bass":
        return pick(basses, rng)
    bass = pick([bass for bass in basses if bass.tempo == drums.tempo], rng)
    return Score(drums.tempo, drums.pattern, drums.hats, bass.root, bass.line)


def caption_for(score: Score, rng: np.random.Generator) -> Caption:
    """Return a random caption of a score."""
    drums = bass = ""
    if score.pattern:
        words = {"pattern": pick(PATTERNS[score.pattern], rng), "hats": pick(HATS[score.hats], rng)}
        drums = pick(DRUM_PHRASES, rng).format(**words)
    if score.root:
        words = {"line": pick(LINES[score.line], rng), "root": pick(ROOTS[score.root], rng)}
        bass = pick(BASS_PHRASES, rng).format(**words)
    parts = pick(JOINS, rng).format(drums=drums, bass=bass) if drums and bass else drums or bass
    text = pick(TEMPO_PHRASES, rng).format(parts=parts, tempo=pick(TEMPOS[score.tempo], rng))
    return Caption(text, score)
