"""The base of a new sound never hears it, and the runs of other seeds stay in the results of scaling.py."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

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
