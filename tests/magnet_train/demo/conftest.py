"""A studio with the tiny checkpoint, and orders for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from magnet_train.demo.jobs import Studio
from magnet_train.demo.order import Kind, Order, Source
from magnet_train.demo.watching import WatchedMagnet


@pytest.fixture(scope="session")
def studio(checkpoint: Path) -> Studio:
    magnet = WatchedMagnet.from_pretrained(checkpoint)
    return Studio(magnet, Source(str(checkpoint), magnet.decoding, "cpu"))


@pytest.fixture
def order(studio: Studio) -> Callable[..., Order]:
    """Return a function that fills in the form: one clip of 0.48 s of a flute, unless told otherwise."""

    def fill(kind: Kind = Kind.TEXT, **fields: Any) -> Order:
        filled = {
            "text": "a flute",
            "seconds": 0.48,
            "seed": 3,
            "clips": 1,
            "decoding": studio.magnet.decoding,
        }
        return Order(kind, **(filled | fields))

    return fill


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A tone of 1.5 s at a rate and with channels that are not the codec's."""
    time = np.arange(int(1.5 * 44100)) / 44100
    tone = 0.3 * np.sin(2 * np.pi * np.stack([220 * time, 330 * time], axis=1))
    path = tmp_path / "my song.wav"
    soundfile.write(path, tone, 44100)
    return path
