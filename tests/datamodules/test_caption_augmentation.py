"""What happens to captions in training is decided by the slot."""

from __future__ import annotations

from typing import Any

import pytest

from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.shards.scan import METADATA_FIELDS
from magnet_train.errors import UserError

METADATA = {
    "text": "Slow piano over strings.",
    "title": "not for the caption",
    "genre": "ambient",
    "moods": ["calm", "sad", ""],
    "bpm": 90,
    "key": "",
    "instrument": None,
    "keywords": {"odd": 1},
}
MERGED = {"genre: ambient", "moods: calm, sad", "bpm: 90"}


def captions(metadata: dict[str, Any] = METADATA, count: int = 400, **options: float) -> list[str]:
    augmentation = CaptionAugmentation(**options)
    return [augmentation.caption(metadata, 0, slot) for slot in range(count)]


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


def test_by_default_nothing_changes() -> None:
    assert set(captions()) == {METADATA["text"]}
    assert set(captions({"bpm": 90})) == {""}


def test_fields_are_merged_behind_the_caption_in_any_order() -> None:
    found = captions(merge_metadata=1.0)
    assert {frozenset(text.split(". ")[1:]) for text in found} == {frozenset(MERGED)}
    assert all(text.startswith("Slow piano over strings. ") for text in found)
    assert len(set(found)) == 6  # the orders of three fields


def test_how_often() -> None:
    assert share(["bpm" in text for text in captions(merge_metadata=0.25)]) == pytest.approx(0.25, abs=0.08)
    dropped = captions(merge_metadata=1.0, drop_caption=0.5)
    assert share(["piano" in text for text in dropped]) == pytest.approx(0.5, abs=0.1)
    fields = captions(merge_metadata=1.0, drop_field=0.5)
    for field in ("genre", "moods", "bpm"):
        assert share([field in text for text in fields]) == pytest.approx(0.5, abs=0.1)


def test_a_caption_is_dropped_only_where_something_takes_its_place() -> None:
    assert set(captions(merge_metadata=1.0, drop_caption=1.0, drop_field=1.0)) == {"Slow piano over strings"}
    assert set(captions({"text": "rain"}, merge_metadata=1.0, drop_caption=1.0)) == {"rain"}
    assert set(captions({"bpm": 90}, merge_metadata=1.0)) == {"bpm: 90"}


def test_words_are_dropped() -> None:
    words = ["one", "two", "three", "four", "five"]
    found = captions({"text": " ".join(words)}, drop_word=0.3)
    for text in found:
        assert [word for word in words if word in text.split()] == text.split()
    assert share([word in text.split() for text in found for word in words]) == pytest.approx(0.7, abs=0.05)
    assert set(captions(drop_word=1.0)) == {""}


def test_the_slot_decides() -> None:
    options = {"merge_metadata": 0.25, "drop_caption": 0.5, "drop_field": 0.5, "drop_word": 0.3}
    first = captions(**options)
    assert first == captions(**options)
    assert len(set(first)) > 50
    other = [CaptionAugmentation(**options).caption(METADATA, 1, slot) for slot in range(400)]
    assert other != first


def test_all_fields_have_a_coin() -> None:
    metadata = {field: f"<{field}>" for field in METADATA_FIELDS}
    found = captions(metadata, merge_metadata=1.0)
    assert all(
        set(text.split(". ")) == {f"{field}: <{field}>" for field in METADATA_FIELDS} for text in found
    )


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_numbers_outside_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"data\.captions\.drop_word"):
        CaptionAugmentation(drop_word=value)
