"""The events of the quickstart's clips, and captions for them.

An event has a pitch (8 notes, none for noise), a timbre (4) and a rhythm (3): 75 combinations. A caption describes one
event or two, each value by one of three synonyms, in one of several phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from magnet_train.apps.quickstart.synthetic import pick

ATTRIBUTES = ("pitch", "timbre", "rhythm")

# Each value with its three synonyms.
PITCHES: dict[str, tuple[str, str, str]] = {
    "c4": ("c4", "low do", "note one"),
    "d4": ("d4", "re", "note two"),
    "e4": ("e4", "mi", "note three"),
    "f4": ("f4", "fa", "note four"),
    "g4": ("g4", "sol", "note five"),
    "a4": ("a4", "la", "note six"),
    "b4": ("b4", "ti", "note seven"),
    "c5": ("c5", "high do", "note eight"),
}
TIMBRES: dict[str, tuple[str, str, str]] = {
    "sine": ("sine", "flute", "pure tone"),
    "square": ("square", "clarinet", "hollow tone"),
    "saw": ("saw", "trumpet", "buzzing tone"),
    "noise": ("noise", "hiss", "static"),
}
RHYTHMS: dict[str, tuple[str, str, str]] = {
    "steady": ("steady", "held", "sustained"),
    "slow": ("slow", "calm", "lazy"),
    "fast": ("fast", "quick", "rapid"),
}

TONE_PHRASES = (
    "a {rhythm} {timbre} on {pitch}",
    "{timbre} playing {pitch}, {rhythm}",
    "{rhythm} {pitch} from a {timbre}",
)
NOISE_PHRASES = ("{rhythm} {timbre}", "{timbre}, {rhythm}", "nothing but {rhythm} {timbre}")
PAIR_PHRASES = (
    "first {first}, then {second}",
    "{first}, followed by {second}",
    "{first}; after that {second}",
)


@dataclass(frozen=True, order=True)
class Event:
    """One sound."""

    pitch: str  # a key of `PITCHES`, "" for noise
    timbre: str  # a key of `TIMBRES`
    rhythm: str  # a key of `RHYTHMS`


@dataclass(frozen=True)
class Caption:
    """A sentence and the one or two events that it describes, in their order in time."""

    text: str
    events: tuple[Event, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the `.json` beside a clip: `text`, and the events as metadata."""
        return asdict(self)


def all_events() -> list[Event]:
    """Return the 75 combinations: 8 notes x 3 tonal timbres x 3 rhythms, and noise in 3 rhythms."""
    tonal = [Event(*values) for values in product(PITCHES, [t for t in TIMBRES if t != "noise"], RHYTHMS)]
    return tonal + [Event("", "noise", rhythm) for rhythm in RHYTHMS]


# Never shown in training, though each of their notes, timbres and rhythms is. Every tonal timbre and every rhythm
# occurs twice here, so that none becomes rare in training.
HELD_OUT = (
    Event("c4", "sine", "fast"),
    Event("d4", "saw", "fast"),
    Event("e4", "square", "slow"),
    Event("g4", "saw", "steady"),
    Event("a4", "square", "steady"),
    Event("b4", "sine", "slow"),
)


def seen_events() -> list[Event]:
    """Return the 69 combinations that training shows."""
    return [event for event in all_events() if event not in HELD_OUT]


def describe(event: Event, rng: np.random.Generator) -> str:
    """Return a random phrase for an event, with a random synonym for each value."""
    phrases = TONE_PHRASES if event.pitch else NOISE_PHRASES
    return pick(phrases, rng).format(
        pitch=pick(PITCHES[event.pitch], rng) if event.pitch else "",
        timbre=pick(TIMBRES[event.timbre], rng),
        rhythm=pick(RHYTHMS[event.rhythm], rng),
    )


def caption_for(events: Sequence[Event], rng: np.random.Generator) -> Caption:
    """Return a random caption for one event or two; raises `ValueError` for any other number."""
    if len(events) == 1:
        return Caption(describe(events[0], rng), tuple(events))
    if len(events) != 2:
        raise ValueError(f"a caption describes one event or two, not {len(events)}")
    first, second = (describe(event, rng) for event in events)
    return Caption(pick(PAIR_PHRASES, rng).format(first=first, second=second), tuple(events))
