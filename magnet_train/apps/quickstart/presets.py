"""What a quickstart run can learn: a world of captioned clips, its oracle, its codec and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from magnet_train.apps.quickstart.band import oracle as band_oracle
from magnet_train.apps.quickstart.band.captions import ATTRIBUTES as BAND_ATTRIBUTES
from magnet_train.apps.quickstart.band.world import BandWorld
from magnet_train.apps.quickstart.drums_and_bass import oracle as drums_and_bass_oracle
from magnet_train.apps.quickstart.drums_and_bass.captions import ATTRIBUTES
from magnet_train.apps.quickstart.drums_and_bass.world import DrumsAndBassWorld
from magnet_train.apps.quickstart.synthetic import Scores, SyntheticWorld


class Caption(Protocol):
    """A sentence; what it describes is the world's own matter."""

    @property
    def text(self) -> str:
        """Return the sentence."""
        ...


class Oracle(Protocol):
    """Hears what clips play; nothing in it is learned."""

    def read_clips(self, clips: Iterable[npt.NDArray[np.floating]], /) -> Sequence[Any]:
        """Return what each clip plays."""
        ...

    def accuracy(self, captions: Sequence[Any], readings: Any, /) -> Scores:
        """Return how often each attribute is as captioned."""
        ...

    def chance(self, captions: Sequence[Any], readings: Any, seed: int = 0, /) -> Scores:
        """Return the accuracy against shuffled captions."""
        ...


@dataclass(frozen=True)
class Preset:
    """A quickstart."""

    world: Callable[[int], SyntheticWorld]  # from a seed
    oracle: Oracle
    codec: str
    configs: tuple[str, ...]
    training: int  # clips
    validation: int  # clips
    goals: Scores  # least accuracy, relative to the ceiling
    unseen_goal: float  # the same, of combinations that training never shows
    example: str  # a caption to try
    loop: tuple[str, ...]  # words of `generate` that make a loop


PRESETS = {
    "drums_and_bass": Preset(
        world=DrumsAndBassWorld,
        oracle=drums_and_bass_oracle,
        codec="drums_and_bass",
        configs=("base", "quickstart", "drums_and_bass", "trainer/cpu"),
        training=1000,
        validation=120,
        goals=dict.fromkeys(ATTRIBUTES, 0.90),
        unseen_goal=0.80,
        example="rock drums with busy hats and walking bass in a, 94 bpm",
        loop=(
            "--text",
            "house drums, offbeat hats and octave bass in e, 125 bpm",
            "--loop",
            "--bars",
            "2",
            "--bpm",
            "125",
        ),
    ),
    "band": Preset(
        world=BandWorld,
        oracle=band_oracle,
        codec="band",
        configs=("base", "quickstart", "drums_and_bass", "band", "trainer/cpu"),
        training=2800,
        validation=140,
        goals=dict.fromkeys(BAND_ATTRIBUTES, 0.90),
        unseen_goal=0.80,
        example="rock drums with busy hats, walking bass in a and minor stabs on organ in a, 94 bpm even feel",
        loop=(
            "--text",
            "house drums, offbeat hats with happy rising arpeggio on harp in e, 125 bpm no swing",
            "--loop",
            "--bars",
            "2",
            "--bpm",
            "125",
        ),
    ),
}
