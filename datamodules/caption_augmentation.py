"""Caption augmentation in training, as a function of the slot: merge metadata, drop the caption, drop words.

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

_DECISIONS = 2  # draws before those of the fields: merge metadata, drop the caption


@dataclass(frozen=True)
class CaptionAugmentation:
    """Probabilities of each augmentation, 0..1.

    Args:
        merge_metadata: Append the fields genre, moods, instrument, keywords, key and bpm in random order, as
            "bpm: 140. genre: rock".
        drop_caption: Drop the caption if fields are merged.
        drop_field: Drop a field before merging, for each field.
        drop_word: Drop a word of the result, for each word.

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
                raise UserError(f"data.captions.{name} is {value}; it must be in 0..1.")

    def caption(self, metadata: Mapping[str, Any], seed: int, slot: int) -> str:
        """Return the augmented caption of a sample, "" if nothing is left of it; seed and slot decide all draws."""
        text = str(metadata.get("text", ""))
        fields = _fields(metadata)
        first = _DECISIONS + 2 * len(METADATA_FIELDS)  # draw of the first word
        draws = _draws(seed, slot, first)
        keep, order = draws[_DECISIONS:][: len(fields)], draws[-len(METADATA_FIELDS) :][: len(fields)]
        if draws[0] < self.merge_metadata:
            merged = [fields[i] for i in np.argsort(order, kind="stable") if keep[i] >= self.drop_field]
            dropped = bool(merged) and draws[1] < self.drop_caption
            text = ". ".join(([] if dropped or not text else [text.rstrip(". ")]) + merged)
        if self.drop_word:
            words = text.split()
            draws = _draws(seed, slot, first + len(words))[first:]
            text = " ".join(word for word, draw in zip(words, draws, strict=True) if draw >= self.drop_word)
        return text

    def longest(self, metadata: Mapping[str, Any]) -> str:
        """Return a text with every word that a caption of this sample can have."""
        merged = _fields(metadata) if self.merge_metadata else []
        return " . ".join([str(metadata.get("text", "")), *merged])


def _fields(metadata: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {value}" for name in METADATA_FIELDS if (value := _as_text(metadata.get(name)))]


def _draws(seed: int, slot: int, count: int) -> npt.NDArray[np.float32]:
    """Return the first `count` uniform numbers of a slot; a larger count begins with the same ones."""
    return uniforms(random_bits(seed, slot, Purpose.CAPTION, -(-count // 2)))[:count]


def _as_text(value: Any) -> str:
    """Format a field for a caption; "" if it is empty or not a text, a number or a list of them."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    return str(value).strip() if isinstance(value, (str, int, float)) else ""
