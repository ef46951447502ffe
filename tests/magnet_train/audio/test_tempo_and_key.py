"""Tempo and key of music that was synthesised at a known tempo and in a known key."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from known_music import PATTERNS, PROGRESSIONS, chords, clicks, drums, groove, noise, random_clicks

from magnet_train.audio.tempo_and_key import KEYS, LEAST_CONFIDENCE, RATE, estimate_key, estimate_tempo

TEMPI = (60, 70, 80, 90, 100, 110, 120, 128, 140, 150, 160, 174, 180)


@pytest.mark.parametrize("bpm", [80, 100, 117.3, 120, 140])
def test_the_tempo_of_clicks(bpm):
    value, confidence = estimate_tempo(clicks(bpm))
    assert value == pytest.approx(bpm, rel=0.002)
    assert confidence > 0.55


@pytest.mark.parametrize("bpm", [70, 90, 100, 120, 140, 160, 174])
def test_the_tempo_of_drums(bpm):
    value, confidence = estimate_tempo(drums(bpm))
    assert value == pytest.approx(bpm, rel=0.002)
    assert confidence > 0.3


@pytest.mark.parametrize(
    ("name", "bpm"), [("house", 128), ("techno", 80), ("hip hop", 90), ("drum and bass", 174), ("ballad", 70)]
)
def test_the_tempo_of_a_groove(name, bpm):
    """Librosa takes these for twice or half as fast, or for 4/3 of it."""
    assert estimate_tempo(groove(name, bpm)).value == pytest.approx(bpm, rel=0.005)


def test_a_syncopated_snare_is_not_relied_on():
    """What could be of another tempo has a low confidence: here the snare falls beside the beat."""
    assert estimate_tempo(groove("reggaeton", 120)).confidence < LEAST_CONFIDENCE["bpm"]


@pytest.mark.parametrize("seed", range(4))
def test_no_tempo_where_there_is_none(seed):
    for audio in (noise(seed), random_clicks(seed)):
        found = estimate_tempo(audio)
        assert found is None or found.confidence < LEAST_CONFIDENCE["bpm"]


def test_a_held_tone_has_no_beats():
    assert estimate_tempo(np.sin(0.1 * np.arange(20 * RATE)).astype(np.float32)) is None


@pytest.mark.parametrize("key", ["C major", "F# major", "A# major", "A minor", "D# minor", "G minor"])
def test_the_key_of_chords(key):
    assert estimate_key(chords(key, progression=0)).value == key
    value, confidence = estimate_key(chords(key, progression=1))
    assert value == key
    assert confidence >= LEAST_CONFIDENCE["key"]


@pytest.mark.parametrize("key", ["A minor", "D# minor"])
def test_chords_of_two_keys_are_not_relied_on(key):
    """The four chords are those of the most common progression of the relative major key."""
    assert estimate_key(chords(key, progression=2)).confidence < LEAST_CONFIDENCE["key"]


def test_an_instrument_out_of_tune():
    assert estimate_key(chords("D major", progression=0, cents=30)).value == "D major"


@pytest.mark.parametrize("seed", range(4))
def test_drums_and_noise_have_no_key(seed):
    assert estimate_key(drums(90 + 20 * seed, seed=seed)).confidence == 0
    assert estimate_key(noise(seed)).confidence == 0
    assert estimate_key(clicks(90 + 20 * seed, seed=seed)).confidence == 0


def test_silence_has_no_key():
    assert estimate_key(np.zeros(RATE, dtype=np.float32)).confidence == 0


@pytest.mark.slow
def test_accuracy():
    """The numbers of docs/data.md, printed by `pytest -s`."""
    for name, synthesise in (("clicks", clicks), ("drums", drums)):
        ratios = np.array([estimate_tempo(synthesise(bpm)).value / bpm for bpm in TEMPI])
        exact = np.isclose(ratios, 1, rtol=0.01)
        octaves = np.isclose(ratios, 2, rtol=0.01) | np.isclose(ratios, 0.5, rtol=0.01)
        print(f"\n{name}: {exact.sum()} of {len(TEMPI)} exact, {octaves.sum()} an octave off", end="")
        assert (exact | octaves).all()
        assert exact.sum() == len(TEMPI)
    found = [
        (estimate_tempo(groove(name, bpm, seed=seed)), bpm)
        for name in PATTERNS
        for seed, bpm in enumerate(TEMPI)
    ]
    exact = np.array([abs(estimate.value / bpm - 1) < 0.01 for estimate, bpm in found])
    relied_on = np.array([estimate.confidence >= LEAST_CONFIDENCE["bpm"] for estimate, _ in found])
    print(
        f"\ngrooves: {exact.sum()} of {len(exact)} exact; of {relied_on.sum()} relied on {exact[relied_on].sum()}, the "
        f"last six patterns {exact[-6 * len(TEMPI) :].sum()} of {6 * len(TEMPI)}",
        end="",
    )
    assert exact.mean() > 0.8
    assert exact[relied_on].mean() > 0.9
    rng = np.random.default_rng(0)
    right, relied_on, relative = [], [], []
    for key in KEYS:
        for progression in range(3):
            bpm, cents = rng.uniform(80, 140), rng.uniform(-30, 30)
            audio = chords(key, progression, bpm, cents, partials=int(rng.integers(2, 9)))
            audio += rng.choice([0, 0.3]) * drums(bpm, seed=progression)
            value, confidence = estimate_key(audio)
            right.append(value == key)
            relied_on.append(confidence >= LEAST_CONFIDENCE["key"])
            relative.append((key, progression) in AMBIGUOUS)
    right, relied_on, relative = map(np.array, (right, relied_on, relative))
    print(
        f"\nkeys: {right.sum()} of {len(right)}, {right[~relative].sum()} of {(~relative).sum()} without "
        f"the progression of two keys; of {relied_on.sum()} relied on {right[relied_on].sum()}"
    )
    assert right[~relative].mean() > 0.9
    assert right[relied_on].mean() > 0.9


AMBIGUOUS = {(key, len(PROGRESSIONS["minor"]) - 1) for key in KEYS if key.endswith("minor")}


@pytest.mark.slow
def test_processes_that_compile_together_leave_what_later_ones_can_load(tmp_path):
    code = (
        "import numpy as np; from magnet_train.audio.tempo_and_key import *; audio = np.zeros(10 * RATE, np.float32); "
        "audio[:: RATE // 2] = 1; assert round(estimate_tempo(audio).value) == 120; estimate_key(audio)"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    together = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait() for process in together] == [0, 0, 0]
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    assert list(tmp_path.rglob("*.nbi"))
