"""The whole band: the oracle hears what clean clips play, stems add up, and training never shows what is held out."""

import itertools
import json

import numpy as np
import pytest
import soundfile

from magnet_train.apps.quickstart.band import captions as words
from magnet_train.apps.quickstart.band import world as world_module
from magnet_train.apps.quickstart.band.captions import (
    ATTRIBUTES,
    PARTS,
    SETS,
    Score,
    caption_for,
    draw_score,
)
from magnet_train.apps.quickstart.band.oracle import accuracy, chance, read_clip, read_clips
from magnet_train.apps.quickstart.band.world import (
    FRAME,
    SAMPLE_RATE,
    SAMPLES,
    BandWorld,
    notes,
    play,
)
from magnet_train.apps.quickstart.drums_and_bass import captions as band_words

MIX = Score("94", "straight", "rock", "eighths", "g", "octaves", "organ", "minor", "rising")


@pytest.mark.parametrize(("unseen", "count"), [(False, 42), pytest.param(True, 350, marks=pytest.mark.slow)])
def test_the_oracle_hears_every_attribute_of_clean_clips(unseen, count):
    captions, clips = zip(*BandWorld(7).clips(count, "test", unseen=unseen), strict=True)
    readings = read_clips(clips)
    assert accuracy(captions, readings) == dict.fromkeys(ATTRIBUTES, 1.0)
    assert readings == [caption.score for caption in captions]
    assert max(chance(captions, readings).values()) < 0.55


@pytest.mark.slow
def test_the_oracle_hears_every_attribute_of_many_clean_clips():
    captions, clips = zip(*BandWorld(8).clips(350, "test"), strict=True)
    assert read_clips(clips) == [caption.score for caption in captions]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tempo", "125"), ("feel", "swung"), ("pattern", "breakbeat"), ("hats", "none"), ("root", "c"),
        ("line", "walking"), ("instrument", "lead"), ("chord", "major"), ("figure", "stabs"),
    ],
)  # fmt: skip
def test_the_oracle_hears_what_is_changed(name, value):
    """Each attribute is heard for itself: a mix that differs in one value is read as that value."""
    score = Score(**{field: getattr(MIX, field) for field in ATTRIBUTES[1:]} | {name: value})
    assert read_clip(play(score, np.random.default_rng(0))) == score


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


def test_stems_add_up_to_the_mix_and_have_their_own_captions(tmp_path):
    world = BandWorld(1)
    (*_, (caption, mix)) = world.clips(7)
    assert caption.score.played == tuple(PARTS)
    stems = list(world.stems(6))
    np.testing.assert_allclose(sum(audio for _, audio in stems), mix, atol=1e-6)
    for (stem, audio), part in zip(stems, PARTS, strict=True):
        assert stem.score == caption.score.only(part) == read_clip(audio)
        assert stem.score.parts == part

    world.write_stems(tmp_path, 7, "train")
    assert len(list(tmp_path.glob("*.wav"))) == 3 * 1 + 3 * 2 + 3
    written, rate = soundfile.read(tmp_path / "train-00006-bass.wav")
    np.testing.assert_allclose(written, stems[1][1], atol=1e-4)
    assert rate == SAMPLE_RATE
    assert json.loads((tmp_path / "train-00006-bass.json").read_text()) == stems[1][0].to_dict()


def test_each_caption_is_drawn_once_for_stems(tmp_path, monkeypatch):
    drawn = []

    def count(parts, rng, *, unseen=False):
        drawn.append(parts)
        return draw_score(parts, rng, unseen=unseen)

    monkeypatch.setattr(world_module, "draw_score", count)
    BandWorld(1).write_stems(tmp_path, 7, "train")
    assert len(drawn) == 7


def test_clips_depend_on_seed_split_and_number_alone():
    first, again = list(BandWorld(1).clips(7)), list(BandWorld(1).clips(9))
    for (caption, audio), (other, same) in zip(first, again, strict=False):
        assert caption == other
        np.testing.assert_array_equal(audio, same)
        assert audio.dtype == np.float32
        assert audio.shape == (SAMPLES,)
        assert 0.03 < np.abs(audio).max() < 1
    others = [BandWorld(2).captions(7), BandWorld(1).captions(7, "test")]
    assert all(captions != [caption for caption, _ in first] for captions in others)


def test_swing_holds_back_the_second_half_of_a_beat_in_all_parts():
    def eighths(feel, part):
        score = Score("125", feel, "house", "eighths", "e", "driving", "pluck", "major", "rising")
        frames = {note.frame for note in notes(score, part) if note.sound not in ("kick", "snare")}
        return sorted(frames)[:5]

    for part in PARTS:
        assert eighths("straight", part) == [0, 12, 24, 36, 48]
        assert eighths("swung", part) == [0, 16, 24, 40, 48]
    assert FRAME * 48 / SAMPLE_RATE == 2 * 60 / 125


def test_a_feel_that_cannot_be_heard_is_not_named():
    house = Score("75", pattern="house", hats="none", root="a", line="walking")
    assert words.with_feel(house, "swung").feel == ""
    still, moving = words.with_feel(MIX, "swung").only("drums"), MIX.only("keys")
    assert still.feel == "swung"
    assert moving.feel == "straight"
    for score in (*words.part_scores("drums"), *words.part_scores("bass"), *words.part_scores("keys")):
        (part,) = score.played
        times = [[note.frame for note in notes(words.replace(score, feel=f), part)] for f in words.FEELS]
        assert (times[0] != times[1]) == bool(score.feel), score


def held_out(score):
    return (
        (score.tempo, score.pattern, score.hats) in band_words.HELD_OUT_DRUMS,
        (score.tempo, score.root, score.line) in band_words.HELD_OUT_BASSES,
        (score.tempo, score.instrument, score.figure) in words.HELD_OUT_KEYS,
    )


def test_training_never_shows_what_is_held_out_but_all_its_values():
    shown = [caption.score for caption in BandWorld(0).captions(1400)]
    unseen = [caption.score for caption in BandWorld(0).captions(140, "test", unseen=True)]
    assert not any(any(held_out(score)) for score in shown)
    for score in unseen:
        assert held_out(score) == tuple(part in score.played for part in PARTS)
    names = ("tempo", "instrument", "figure")
    for triple, pair in itertools.product(words.HELD_OUT_KEYS, itertools.combinations(range(3), 2)):
        wanted = {names[place]: triple[place] for place in pair}
        assert any(all(getattr(score, name) == value for name, value in wanted.items()) for score in shown)
    for name in ATTRIBUTES:
        values = {getattr(score, name) for score in shown}
        assert {getattr(score, name) for score in unseen} <= values
    assert {score.played for score in shown} == set(SETS)


def test_a_caption_names_each_value():
    tables = {
        "tempo": words.TEMPOS, "feel": words.FEELS, "pattern": words.PATTERNS, "hats": words.HATS,
        "line": words.LINES, "instrument": words.INSTRUMENTS, "chord": words.CHORDS, "figure": words.FIGURES,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for index in range(210):
        caption = caption_for(draw_score(SETS[index % len(SETS)], rng), rng)
        for name, table in tables.items():
            value = getattr(caption.score, name)
            found = [
                key for key, phrases in table.items() if any(phrase in caption.text for phrase in phrases)
            ]
            assert (value in found) == bool(value), (caption.text, name)
    synonyms = [phrase for table in tables.values() for phrases in table.values() for phrase in phrases]
    assert len(set(synonyms)) == len(synonyms)
    assert "a" not in " ".join(synonyms).split()  # it is a root


def test_keys_play_the_chord_on_the_root_of_the_bass():
    tones = sorted({note.frequency for note in notes(MIX, "keys")})
    np.testing.assert_allclose(np.log2(np.array(tones) / 98.0) * 12, [24, 27, 31, 36], atol=0.01)


def test_a_caption_is_written_with_its_values():
    record = words.Caption("x", MIX.only("keys")).to_dict()
    assert record == {
        "text": "x", "parts": "keys", "tempo": "94", "feel": "straight", "pattern": "", "hats": "", "root": "g",
        "line": "", "instrument": "organ", "chord": "minor", "figure": "rising",
    }  # fmt: skip
