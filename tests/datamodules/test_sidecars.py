"""Text files of Side-Step and ai-toolkit beside the audio, and captions that only look like them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.caption_rules import CaptionColumn, CaptionError, CaptionTemplate
from datamodules.tokenize.captions import describe, find_caption
from datamodules.tokenize.sidecars import parse_sidecar
from datamodules.tokenize.sources import take_stats

SIDE_STEP = """# Side-Step
caption: A dreamy lo-fi track
  with soft rain
genre: ambient, lo-fi
bpm: 85
keyscale: C minor
signature: 4/4
is_instrumental: false
lyrics:
[Verse]
Key: the one I lost

[Chorus]
# not a comment
"""
AI_TOOLKIT = """<CAPTION>
An upbeat pop song
</CAPTION>
<LYRICS>
[Verse]
Hello < world
</LYRICS>
<BPM>120</BPM>
<KEYSCALE>C major</KEYSCALE>
<TIMESIGNATURE>4</TIMESIGNATURE>
<DURATION>30</DURATION>
<LANGUAGE>en</LANGUAGE>
"""


def test_side_step() -> None:
    assert parse_sidecar(SIDE_STEP) == {
        "caption": "A dreamy lo-fi track\n  with soft rain",
        "genre": "ambient, lo-fi",
        "bpm": "85",
        "key": "C minor",
        "time_signature": "4/4",
        "is_instrumental": "false",
        "lyrics": "[Verse]\nKey: the one I lost\n\n[Chorus]\n# not a comment",
    }


def test_ai_toolkit() -> None:
    expected = {
        "caption": "An upbeat pop song",
        "lyrics": "[Verse]\nHello < world",
        "bpm": "120",
        "key": "C major",
        "time_signature": "4",
        "duration": "30",
        "language": "en",
    }
    assert parse_sidecar(AI_TOOLKIT) == expected
    unclosed = AI_TOOLKIT.replace("</CAPTION>", "").replace("</LANGUAGE>", "").lower()
    assert parse_sidecar(unclosed) == {name: value.lower() for name, value in expected.items()}


@pytest.mark.parametrize(
    "text",
    [
        "slow piano",
        "Key: the story of a door",
        "genre: rock. bpm: 140",
        "a song in two parts\nlyrics: none",
        "Instruments: piano\ncaption: x",
        "<b>bold</b> piano",
        "",
        " \n",
    ],
)
def test_other_text_is_the_caption(text: str) -> None:
    assert parse_sidecar(text) == {"caption": text}


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="<>/CAPTIONLYRSBM:\n abc[]#"))
def test_any_text_gives_text(text: str) -> None:
    """Also in linear time: `re` is not led astray."""
    for whole in (text, f"caption: {text}", f"<CAPTION>{text}"):
        fields = parse_sidecar(whole)
        assert all(isinstance(value, str) for value in fields.values())
    assert (
        parse_sidecar("caption: x\nlyrics:\n" + text).get("lyrics", "")
        == "\n".join(text.splitlines()).strip()
    )


def test_the_caption_alone_is_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "a.txt").write_text(SIDE_STEP)
    (tmp_path / "a.json").write_text('{"bpm": 86, "mood": "calm"}')
    found = find_caption(tmp_path / "a.wav", {})
    assert found.origin == ".txt"
    assert found.fields["text"] == "A dreamy lo-fi track with soft rain"
    assert found.fields["bpm"] == 86  # the .json goes first
    assert found.fields["lyrics"].startswith("[Verse]\nKey")
    assert "caption" not in found.fields


def test_caption_and_lyrics_in_two_files(tmp_path: Path) -> None:
    """The second convention of Side-Step."""
    audio = tmp_path / "a.wav"
    audio.touch()
    (tmp_path / "a.caption.txt").write_text("Key: a calm\nsong\n")
    (tmp_path / "a.lyrics.txt").write_text("[Verse]\ncaption: of my heart\n\n[Chorus]\n")
    found = find_caption(audio, {})
    lyrics = "[Verse]\ncaption: of my heart\n\n[Chorus]"
    assert found == ({"text": "Key: a calm song", "lyrics": lyrics}, ".caption.txt")
    # fields in a .txt are added, a plain one holds the lyrics if there are no others
    (tmp_path / "a.txt").write_text("caption: another\nbpm: 85")
    assert describe(audio, {}) == {"text": "Key: a calm song", "lyrics": lyrics, "bpm": "85"}
    (tmp_path / "a.txt").write_text("la la\nla")
    assert describe(audio, {}) == {"text": "Key: a calm song", "lyrics": lyrics}
    (tmp_path / "a.lyrics.txt").unlink()
    assert describe(audio, {}) == {"text": "Key: a calm song", "lyrics": "la la\nla"}
    # the .json goes first, and an empty file says nothing
    (tmp_path / "a.json").write_text('{"text": "from JSON", "lyrics": "[Instrumental]"}')
    assert describe(audio, {}) == {"text": "from JSON", "lyrics": "[Instrumental]"}
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.caption.txt").write_text(" \n")
    assert find_caption(audio, {}) == ({"text": "la la la"}, ".txt")


def test_lyrics_alone_are_no_caption(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    audio.touch()
    (tmp_path / "a.lyrics.txt").write_text("la la")
    with pytest.raises(CaptionError, match="no caption: none of"):
        describe(audio, {})
    assert describe(audio, {"text": "x"}) == {"text": "x", "lyrics": "la la"}


def test_the_sources_of_a_growing_folder_name_them(tmp_path: Path) -> None:
    """Without them, a source is what it was before they were read."""
    audio = tmp_path / "a.wav"
    audio.touch()
    (tmp_path / "a.txt").write_text("x")
    (before,) = take_stats([AudioFile(audio, "a.wav")])
    assert [stat and stat[0] for stat in before.stats] == [0, None, 1]
    (tmp_path / "a.caption.txt").write_text("four")
    (tmp_path / "a.lyrics.txt").write_text("three")
    (after,) = take_stats([AudioFile(audio, "a.wav")])
    assert [stat and stat[0] for stat in after.stats] == [0, None, 1, 4, 5]


def test_fields_without_a_caption(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "a.txt").write_text("genre: jazz\nbpm: 90\nlyrics:\n")
    with pytest.raises(CaptionError, match="no caption: none of"):
        describe(tmp_path / "a.wav", {})
    assert describe(tmp_path / "a.wav", {}, CaptionTemplate("{genre} at {bpm:d}"))["text"] == "jazz at 90"
    assert describe(tmp_path / "a.wav", {}, CaptionColumn("genre"))["text"] == "jazz"


def test_a_named_column_goes_before_all_others(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    listed = {"text": "usual", "prompt": "chosen", "genre": ["rock", "pop"], "empty": " "}
    assert describe(tmp_path / "a.wav", listed, CaptionColumn("prompt"))["text"] == "chosen"
    assert describe(tmp_path / "a.wav", listed, CaptionColumn("genre"))["text"] == "rock, pop"
    template = CaptionTemplate("all {genre}")
    assert describe(tmp_path / "a.wav", listed, CaptionColumn("empty", template))["text"] == "all rock, pop"
    with pytest.raises(CaptionError, match="no caption: empty is empty"):
        describe(tmp_path / "a.wav", listed, CaptionColumn("empty"))


@pytest.mark.parametrize(
    ("listed", "written", "origin"),
    [
        ({"description": "x"}, None, "column description"),
        ({}, ("a.json", '{"caption": "x"}'), ".json: caption"),
        ({}, ("a.txt", "x"), ".txt"),
    ],
)
def test_where_a_caption_comes_from(
    tmp_path: Path, listed: dict[str, str], written: tuple[str, str] | None, origin: str
) -> None:
    (tmp_path / "a.wav").touch()
    if written:
        (tmp_path / written[0]).write_text(written[1])
    assert find_caption(tmp_path / "a.wav", listed).origin == origin
