"""Vary a caption in training: merge metadata into it, drop it, drop words. Decided by the slot.

Source: the text conditioning of the released MusicGen and MAGNeT music configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.sampling.order import Purpose, random_bits, uniforms
from datamodules.shards.scan import METADATA_FIELDS
from magnet_train.errors import UserError

_COINS = 2  # merge, drop the caption


@dataclass(frozen=True)
class CaptionAugmentation:
    """How often what happens to a caption, each 0..1.

    Args:
        merge_metadata: The fields genre, moods, instrument, keywords, key and bpm are appended, in random
            order, as "bpm: 140. genre: rock".
        drop_caption: The caption gives way to merged fields; only where fields are merged.
        drop_field: A field is left out of the merged ones.
        drop_word: A word of what came out is left out.

    Raises:
        UserError: A number outside 0..1.
    """

    merge_metadata: float = 0.0
    drop_caption: float = 0.0
    drop_field: float = 0.0
    drop_word: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise UserError(f"data.captions.{name} is {value} and has to be in 0..1.")

    def caption(self, metadata: Mapping[str, Any], seed: int, slot: int) -> str:
        """Return the caption that a slot trains on, "" if nothing is left of it.

        Args:
            metadata: JSON of the sample; `text` is its caption.
            seed: The run's seed.
            slot: Decides everything.
        """
        text = str(metadata.get("text", ""))
        fields = [f"{name}: {value}" for name in METADATA_FIELDS if (value := _as_text(metadata.get(name)))]
        dice = _Dice(seed, slot)
        coins = dice.take(_COINS + 2 * len(METADATA_FIELDS))
        kept, places = coins[_COINS : _COINS + len(fields)], coins[-len(METADATA_FIELDS) :][: len(fields)]
        if coins[0] < self.merge_metadata:
            merged = [fields[i] for i in np.argsort(places, kind="stable") if kept[i] >= self.drop_field]
            dropped = bool(merged) and coins[1] < self.drop_caption
            text = ". ".join(([] if dropped or not text else [text.rstrip(". ")]) + merged)
        if self.drop_word:
            words = text.split()
            text = " ".join(
                word
                for word, coin in zip(words, dice.take(len(words)), strict=True)
                if coin >= self.drop_word
            )
        return text


class _Dice:
    """Uniform numbers of a slot, one after another."""

    def __init__(self, seed: int, slot: int) -> None:
        self._seed = seed
        self._slot = slot
        self._used = 0

    def take(self, count: int) -> npt.NDArray[np.float32]:
        start, self._used = self._used, self._used + count
        words = -(-self._used // 2)
        return uniforms(random_bits(self._seed, self._slot, Purpose.CAPTION, words))[start : self._used]


def _as_text(value: Any) -> str:
    """Write a field as the caption has it; "" for what is empty or no text, number or list of them."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    return str(value).strip() if isinstance(value, (str, int, float)) else ""
