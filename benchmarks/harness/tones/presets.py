"""The tones as presets of the quickstart."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from harness.tones import oracle
from harness.tones.world import ToneWorld
from magnet_train.apps.quickstart.presets import Preset

DEFAULT = Preset(
    world=partial(ToneWorld, "default"),
    oracle=oracle,
    codec="quickstart",
    configs=("base", "quickstart", "trainer/cpu"),
    training=1400,
    validation=160,
    goals={"pitch": 0.95, "timbre": 0.95, "rhythm": 0.90},
    unseen_goal=0.85,
    example="a calm flute on low do",
    loop=("--text", "a fast clarinet on sol", "--loop"),
)
QUICKSTARTS = {
    "default": DEFAULT,
    "full": replace(
        DEFAULT, world=partial(ToneWorld, "full"), example="first a calm flute on low do, then fast hiss"
    ),
}
# Options of `fit` after those of the configurations.
FIT = {
    "default": (),
    "full": (
        *("--data.segment_duration", "2.56"),
        *("--trainer.max_steps", "8000", "--trainer.val_check_interval", "1000"),
    ),
}
