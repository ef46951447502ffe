"""The band: the oracle hears what clean clips play, captions say it, and training never shows what is held out."""

import itertools

import numpy as np
import pytest

from magnet_train.apps.quickstart.drums_and_bass import captions as words
from magnet_train.apps.quickstart.drums_and_bass.captions import (
    ATTRIBUTES,
    Caption,
    Score,
    caption_for,
    draw_score,
)
from magnet_train.apps.quickstart.drums_and_bass.oracle import accuracy, chance, read_clip, read_clips
from magnet_train.apps.quickstart.drums_and_bass.world import (
    PARTS,
    SAMPLE_RATE,
    SAMPLES,
    DrumsAndBassWorld,
    play,
)


@pytest.mark.parametrize("unseen", [False, True])
def test_the_oracle_hears_every_attribute_of_clean_clips(unseen):
    captions, clips = zip(*DrumsAndBassWorld(7).clips(120, "test", unseen=unseen), strict=True)
    readings = read_clips(clips)
    assert accuracy(captions, readings) == dict.fromkeys(ATTRIBUTES, 1.0)
    scores = chance(captions, readings)
    assert max(scores.values()) < 0.45
    assert min(scores.values()) > 0.05


def test_the_oracle_hears_what_is_changed():
    """Each attribute is heard for itself: another clip that differs in one value is read as that value."""
    rng = np.random.default_rng(0)
    base = Score("94", "rock", "eighths", "g", "octaves")
    for name, value in (
        ("tempo", "125"), ("pattern", "breakbeat"), ("hats", "none"), ("root", "c"), ("line", "walking")
    ):  # fmt: skip
        score = Score(**{field: getattr(base, field) for field in ATTRIBUTES[1:]} | {name: value})
        assert read_clip(play(score, rng)) == score


@pytest.mark.parametrize("sound", ["silence", "noise", "a whistle", "empty"])
def test_the_oracle_hears_nothing_in_other_sounds(sound):
    rng = np.random.default_rng(0)
    clip = {
        "silence": np.zeros(SAMPLES),
        "noise": 0.001 * rng.standard_normal(SAMPLES),
        "a whistle": 0.3 * np.sin(2 * np.pi * 2000 * np.arange(SAMPLES) / SAMPLE_RATE),
        "empty": np.zeros(0),
    }[sound]
    assert read_clip(clip) == Score("")


def test_clips_depend_on_seed_split_and_number_alone():
    first = list(DrumsAndBassWorld(1).clips(3, "train"))
    again = list(DrumsAndBassWorld(1).clips(5, "train"))
    for (caption, audio), (other, same) in zip(first, again, strict=False):
        assert caption == other
        np.testing.assert_array_equal(audio, same)
        assert audio.dtype == np.float32
        assert len(audio) == SAMPLES
    others = [DrumsAndBassWorld(2).captions(3, "train"), DrumsAndBassWorld(1).captions(3, "test")]
    assert all(captions != [caption for caption, _ in first] for captions in others)


def test_clips_are_music_and_not_clipped():
    peaks = [np.abs(audio).max() for _, audio in DrumsAndBassWorld(3).clips(60)]
    assert max(peaks) < 1
    assert min(peaks) > 0.1
    score = Score("94", "rock", "eighths")
    one, other = (play(score, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.allclose(one, other)  # level and force of the hits differ


def test_training_never_shows_what_is_held_out_but_all_its_values():
    shown = [caption.score for caption in DrumsAndBassWorld(0).captions(1500, "train")]
    unseen = [caption.score for caption in DrumsAndBassWorld(0).captions(150, "test", unseen=True)]
    drums, basses = words.HELD_OUT_DRUMS, words.HELD_OUT_BASSES
    for score in shown:
        assert (score.tempo, score.pattern, score.hats) not in drums
        assert (score.tempo, score.root, score.line) not in basses
    for score in unseen:
        assert (score.tempo, score.pattern, score.hats) in drums or not score.pattern
        assert (score.tempo, score.root, score.line) in basses or not score.root
    for held_out, names in ((drums, ("tempo", "pattern", "hats")), (basses, ("tempo", "root", "line"))):
        for triple, pair in itertools.product(held_out, itertools.combinations(range(3), 2)):
            wanted = {names[place]: triple[place] for place in pair}
            assert any(
                all(getattr(score, name) == value for name, value in wanted.items()) for score in shown
            )
    for name in ATTRIBUTES:
        assert {getattr(score, name) for score in unseen} <= {getattr(score, name) for score in shown}
    assert {score.parts for score in shown} == set(PARTS)


def test_a_caption_names_each_value_once():
    rng = np.random.default_rng(0)
    tables = {
        "pattern": words.PATTERNS,
        "hats": words.HATS,
        "root": words.ROOTS,
        "line": words.LINES,
        "tempo": words.TEMPOS,
    }
    for index in range(200):
        caption = caption_for(draw_score(PARTS[index % 3], rng), rng)
        for name, table in tables.items():
            value = getattr(caption.score, name)
            found = [
                key for key, phrases in table.items() if any(phrase in caption.text for phrase in phrases)
            ]
            assert (value in found) == bool(value), (caption.text, name)
    synonyms = list(
        itertools.chain.from_iterable(itertools.chain(*table.values()) for table in tables.values())
    )
    assert len(set(synonyms)) == len(synonyms)


def test_a_caption_is_written_with_its_values():
    score = Score("75", "rock", "none")
    record = Caption("x", score).to_dict()
    assert record == {
        "text": "x", "parts": "drums", "tempo": "75", "pattern": "rock", "hats": "none", "root": "", "line": ""
    }  # fmt: skip
