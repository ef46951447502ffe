"""The world: deterministic, with combinations held out of training, and read by the oracle without errors."""

import json

import numpy as np
import pytest
import soundfile

from harness.tones.captions import (
    HELD_OUT,
    PITCHES,
    RHYTHMS,
    TIMBRES,
    Caption,
    Event,
    all_events,
    caption_for,
    seen_events,
)
from harness.tones.oracle import expected_windows, read_clip, read_window
from harness.tones.world import PRESETS, SAMPLE_RATE, WINDOW, ToneWorld
from write_text_encoder import vocabulary


def test_there_are_75_combinations_and_6_are_held_out():
    assert len(set(all_events())) == 8 * 3 * 3 + 3
    assert len(seen_events()) == 69
    assert not set(HELD_OUT) & set(seen_events())
    for name, values in (("pitch", PITCHES), ("timbre", TIMBRES), ("rhythm", RHYTHMS)):
        assert {getattr(event, name) for event in seen_events()} - {""} == set(values)


@pytest.mark.parametrize("preset", PRESETS)
def test_training_never_shows_a_held_out_combination(preset):
    world = ToneWorld(preset, seed=3)
    shown = {event for caption in world.captions(3000) for event in caption.events}
    assert shown == set(seen_events())
    unseen = {event for caption in world.captions(60, "test", unseen=True) for event in caption.events}
    assert unseen == set(HELD_OUT)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_clip_is_a_function_of_seed_split_and_number(preset):
    first = list(ToneWorld(preset, 5).clips(6))
    again = list(ToneWorld(preset, 5).clips(4))
    for (caption, audio), (other_caption, other_audio) in zip(first[:4], again, strict=True):
        assert caption == other_caption
        np.testing.assert_array_equal(audio, other_audio)
        assert audio.shape == (PRESETS[preset].samples,)
        assert audio.dtype == np.float32
        assert np.abs(audio).max() < 1
    for world, split in ((ToneWorld(preset, 6), "train"), (ToneWorld(preset, 5), "validation")):
        assert [caption for caption, _ in world.clips(6, split)] != [caption for caption, _ in first]


@pytest.mark.parametrize(
    ("preset", "seed", "clips"),
    [("default", 0, 1000), ("default", 1, 500), pytest.param("full", 0, 1000, marks=pytest.mark.slow)],
)
def test_the_oracle_reads_every_clean_clip_correctly(preset, seed, clips):
    world = ToneWorld(preset, seed)
    for caption, audio in world.clips(clips, "test"):
        assert read_clip(audio) == expected_windows(caption.events, world.preset.windows), caption.text


def test_the_oracle_reads_held_out_combinations_too():
    world = ToneWorld("full", 2)
    for caption, audio in world.clips(60, "test", unseen=True):
        assert read_clip(audio) == expected_windows(caption.events, 2), caption.text


def test_silence_reads_as_no_values():
    assert read_window(np.zeros(WINDOW)) == Event("", "", "")


def test_a_tone_between_two_notes_reads_as_no_pitch():
    time = np.arange(WINDOW) / SAMPLE_RATE
    between_g4_and_a4 = 0.5 * np.sin(2 * np.pi * 415.3 * time)  # g sharp
    assert read_window(between_g4_and_a4) == Event("", "sine", "steady")


def test_a_short_blip_and_a_wrong_tempo_read_as_no_rhythm():
    time = np.arange(WINDOW) / SAMPLE_RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    assert read_window(tone * (time < 0.2)).rhythm == ""
    assert read_window(tone * (time % 0.8 < 0.4)).rhythm == ""  # twice slower than slow
    assert read_window(tone * (time % 0.06 < 0.03)).rhythm != "slow"


def test_files_carry_caption_and_labels(tmp_path):
    world = ToneWorld("full", 4)
    world.write(tmp_path / "audio", 5, "validation")
    for index, caption in enumerate(world.captions(5, "validation")):
        audio, rate = soundfile.read(tmp_path / "audio" / f"validation-{index:05d}.wav")
        record = json.loads((tmp_path / "audio" / f"validation-{index:05d}.json").read_text())
        assert rate == SAMPLE_RATE
        assert audio.shape == (2 * WINDOW,)
        assert record["text"] == caption.text
        assert Caption(record["text"], tuple(Event(**event) for event in record["events"])) == caption
        assert read_clip(audio) == expected_windows(caption.events, 2)  # also from 16 bits


def test_every_word_of_every_caption_is_in_the_vocabulary():
    words = set(vocabulary())
    for preset in PRESETS:
        for caption in ToneWorld(preset, 9).captions(500):
            text = caption.text.replace(",", " , ").replace(";", " ; ")
            assert set(text.split()) <= words
    assert all(word == word.lower() for word in words)


def test_values_have_no_synonym_in_common():
    synonyms = [name for values in (PITCHES, TIMBRES, RHYTHMS) for names in values.values() for name in names]
    assert len(synonyms) == len(set(synonyms)) == 3 * (8 + 4 + 3)


def test_a_caption_names_one_or_two_events():
    with pytest.raises(ValueError, match="not 3"):
        caption_for([HELD_OUT[0]] * 3, np.random.default_rng(0))
