"""The form is read as it stands, and what changes on the page is what has changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from magnet_train.demo.form import describing, lay_out_form
from magnet_train.demo.page import _make, build_page
from magnet_train.demo.studio import Studio
from magnet_train.text import ClassLabels, NoText

PLACES = 4  # of clips; four parts each, after seed, two buttons, status and kept part


@pytest.fixture
def form(studio: Studio) -> dict[str, Any]:
    """The fields' first values, as a visitor finds them."""
    with gr.Blocks():
        return {name: field.value for name, field in lay_out_form(studio.magnet).items()}


def test_defaults_are_the_models_own(studio: Studio, form: dict[str, Any]) -> None:
    assert (form["seconds"], form["steps"]) == (0.48, "3, 2, 2, 2")
    assert (form["guidance"], form["last_guidance"], form["temperature"]) == (3.0, 1.0, 3.0)
    update = list(_make(studio, form, "me"))[-1]
    assert "state done" in update[3]


def test_a_clip_is_sent_once(studio: Studio, form: dict[str, Any]) -> None:
    updates = list(_make(studio, form | {"clips": 2, "surprise": False, "seed": 7}, "me"))
    assert updates[0][0] == 7
    for index, seed in enumerate((7, 8)):
        sent = [update[5 + 4 * index : 9 + 4 * index] for update in updates]
        shown = [parts for parts in sent if parts[3] and "magnet-train generate" in str(parts[3])]
        assert len(shown) == 1
        assert shown[0][1]["value"].endswith(f"clip_seed_{seed}.wav")
        assert shown[0][1]["label"] == f"Seed {seed}"
        assert shown[0][2].count("data:image/png;base64,iVBOR") == 2
    assert all(len(update) == 5 + 4 * PLACES for update in updates)
    assert updates[0][1]["interactive"] is False  # Generate, while it works
    assert updates[-1][1]["interactive"] is True


def test_surprise_draws_a_seed_and_shows_it(studio: Studio, form: dict[str, Any]) -> None:
    seeds = {next(iter(_make(studio, form | {"surprise": True}, str(n))))[0] for n in range(4)}
    assert len(seeds) > 1
    assert all(0 <= seed < 10**6 for seed in seeds)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": "<b>many</b>"}, "&lt;b&gt;many&lt;/b&gt;"),
        ({"kind": "Rocket"}, "cannot be made"),
        ({"kind": "Change a part", "recording": None}, "There is no recording yet"),
        ({"top_p": 1.5}, "Top_p 1.5 must lie in 0..1"),
    ],
)
def test_a_mistake_is_a_message(studio: Studio, form: dict[str, Any], wrong: dict, words: str) -> None:
    (update,) = _make(studio, form | wrong, "me")
    assert words in update[3]
    assert "role='alert'" in update[3]
    assert update[1]["interactive"] is True


def test_empty_fields_are_the_models_own(studio: Studio, form: dict[str, Any]) -> None:
    empty = {"text": None, "seed": None, "temperature": None, "guidance": None, "last_guidance": None}
    update = list(_make(studio, form | empty, "me"))[-1]
    assert "state done" in update[3]


@pytest.mark.parametrize(
    ("text", "kind"), [(ClassLabels(["low", "high"], 8), "dropdown"), (NoText(), "textbox")]
)
def test_other_texts(studio: Studio, monkeypatch: pytest.MonkeyPatch, text: Any, kind: str) -> None:
    monkeypatch.setattr(studio.magnet, "_text", text)
    with gr.Blocks():
        field = lay_out_form(studio.magnet)["text"]
    assert field.get_block_name() == kind
    assert field.interactive is not isinstance(text, NoText)


def test_the_page_says_what_the_model_is(studio: Studio) -> None:
    page = build_page(studio, "<tiny>")
    heading = next(block.value for block in page.blocks.values() if isinstance(block, gr.HTML))
    assert "&lt;tiny&gt;" in heading
    assert re.search(r"clips of up to 0.48 s · 8 kHz mono · 4 codebooks at 50 frames/s", heading)
    assert page.analytics_enabled is False


def test_a_recording_is_described_and_its_middle_proposed(
    studio: Studio, recording: Path, tmp_path: Path
) -> None:

    note, start, end = describing(0.48)(str(recording))
    assert "my song.wav: 1.50 s" in note["value"]
    assert (start, end) == (0.6, 0.9)
    (tmp_path / "<b>.wav").write_text("no sound")
    assert "&lt;b&gt;.wav" in describing(0.48)(str(tmp_path / "<b>.wav"))[0]["value"]
