"""The base of a new sound never hears it, and the runs of other seeds stay in the results of scaling.py."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import new_sound
import pytest
import scaling


@pytest.mark.parametrize("sound", list(new_sound.BASE_STEPS))
def test_the_old_captions_lack_the_new_sound(sound: str) -> None:
    old, new = (new_sound.captions_of(sound, kind, "test", 30) for kind in ("old", "new"))
    assert len(old) == len(new) == 30
    attribute, value = ("parts", "bass") if sound == "bass" else ("pattern", sound)
    assert {getattr(caption.score, attribute) == value for caption in new} == {True}
    assert {getattr(caption.score, attribute) == value for caption in old} == {False}


def test_a_run_replaces_that_of_its_variant_and_seed_alone(tmp_path: Path) -> None:
    first = {"seed": 0, **asdict(scaling.BASE), "fit_minutes": 1}
    del first["crops"]  # as in the first records
    others = [{**first, "seed": 1}, {**first, **asdict(replace(scaling.BASE, crops=True))}]
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"runs": [first, *others]}), encoding="utf-8")
    again = {**asdict(scaling.BASE), "seed": 0, "fit_minutes": 2}
    assert scaling.keep(results, again) == [*others, again]


def test_seeds_of_one_tuning_are_summarised_together() -> None:
    def row(seed: int, strength: float, share: float) -> dict[str, Any]:
        right = {"right": {"whole clip": share}}
        tuning = asdict(new_sound.Tuning())
        return {**tuning, "strength": strength, "seed": seed, "new": right, "old": right}

    half, whole = new_sound.summarise([row(0, 0.5, 1.0), row(0, 1.0, 0.25), row(1, 1.0, 0.75)])
    assert (half["seeds"], half["new"]["by seed"]) == (1, [1.0])
    assert (whole["seeds"], whole["old"]["by seed"], whole["old"]["whole clip"]) == (2, [0.25, 0.75], 0.5)
    low, high = whole["old"]["interval"]  # of 180 captions
    assert 0.42 < low < 0.5 < high < 0.58
