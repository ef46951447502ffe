"""Forms are read into requests; a value out of range or of the wrong type is an error in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from magnet_train.apps.demo.form import build_form
from magnet_train.apps.demo.request import ClipRequest, Task, read_steps
from magnet_train.apps.demo.service import ModelSource, command
from magnet_train.errors import UserError
from magnet_train.pipeline.magnet import Magnet
from magnet_train.text import ClassLabels, NoText

Read = Callable[..., ClipRequest]


def test_defaults_are_the_models_settings(magnet: Magnet, form: dict[str, Any], request_of: Read) -> None:
    assert (form["seconds"], form["steps"]) == (0.48, "3, 2, 2, 2")
    assert (form["guidance"], form["last_guidance"], form["temperature"]) == (3.0, 1.0, 1.0)
    assert request_of() == ClipRequest(Task.TEXT, "a flute", 0.48, 3, 1, magnet.decoding)


def test_empty_fields_keep_the_models_settings(magnet: Magnet, request_of: Read) -> None:
    numbers = ("seed", "temperature", "top_p", "guidance", "last_guidance", "loudness", "bars", "bpm")
    read = request_of(**dict.fromkeys(("text", "negative", *numbers)))
    assert (read.text, read.negative, read.loudness, read.decoding) == (None, None, None, magnet.decoding)


def test_a_random_seed_is_drawn(request_of: Read) -> None:
    seeds = {request_of(random_seed=True).seed for _ in range(4)}
    assert len(seeds) > 1
    assert all(0 <= seed < 10**6 for seed in seeds)


RECORDING = {"recording": "song.wav", "start": 0.1, "end": 0.2, "kept_seconds": 0.2, "which": "the last"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"task": "Rocket"}, "the task should be one of New clip, "),
        ({"task": ["Loop"]}, "the task should be one of"),
        ({"text": "x" * 1001}, "at most 1000 characters"),
        ({"text": {"path": "/etc/passwd"}}, "at most 1000 characters"),
        ({"text": "a \ud800 flute"}, "half of a surrogate pair"),
        ({"text": "a \0 flute"}, "control character"),
        ({"seconds": 9.0}, "length 9.0 should be a number from 0 to 0.48"),
        ({"seconds": -1}, "length -1 should be a number"),
        ({"seconds": float("nan")}, "length nan should be a number"),
        ({"seconds": None}, "length None should be a number"),
        ({"clips": 5}, "variations 5 should be a whole number from 1 to 4"),
        ({"clips": True}, "variations True should be a whole number"),
        ({"seed": -5}, "seed -5 should be a whole number from 0"),
        ({"seed": 0.5}, "seed 0.5 should be a whole number"),
        ({"seed": float("inf")}, "seed inf should be a whole number"),
        ({"seed": 2**53}, "should be a whole number"),
        ({"seed": 10**4000}, "should be a whole number"),
        ({"steps": "1"}, "steps '1' should be 4 whole numbers from 1 to 500"),
        ({"steps": "9" * 10**6}, "should be 4 whole numbers"),
        ({"steps": None}, "should be 4 whole numbers"),
        ({"temperature": -0.1}, "temperature -0.1 should be a number from 0 to 100"),
        ({"temperature": "hot"}, "temperature hot should be a number"),
        ({"top_p": 1.5}, "top_p 1.5 should be a number from 0 to 1"),
        ({"guidance": 1e30}, "guidance at the start 1e+30 should be a number from -100 to 100"),
        ({"last_guidance": -1e300}, "guidance at the end -1e+300 should be"),
        ({"negative": "x" * 1001}, "at most 1000 characters"),
        ({"loudness": 3}, "loudness 3 should be a number from -60 to 0"),
        ({"format": "exe"}, "the format should be one of wav, flac, mp3, ogg"),
        ({"format": ["wav"]}, "the format should be one of"),
        ({"task": "Loop", "bars": 1.5}, "number of bars 1.5 should be a whole number from 1"),
        ({"task": "Loop", "bars": 1, "bpm": None}, "tempo None should be a number from 20 to 999"),
        (
            {"task": "Loop", "bars": 1, "bpm": 120},
            "1 bars at 120 bpm last 2.0 s; the page makes clips of up to 0.48",
        ),
        ({"task": "Change a part", **RECORDING, "format": "mp3"}, "keeps its samples only in wav or flac"),
        ({"task": "Change a part"}, "there is no recording yet"),
        ({"task": "Change a part", **RECORDING, "recording": 7}, "there is no recording yet"),
        (
            {"task": "Change a part", **RECORDING, "end": 1e9},
            "end 1000000000.0 should be a number from 0 to 600",
        ),
        (
            {"task": "Continue a recording", **RECORDING, "kept_seconds": 0.48},
            "less than the clip's length of 0.48 s",
        ),
        (
            {"task": "Continue a recording", **RECORDING, "kept_seconds": None},
            "less than the clip's length of 0.48 s",
        ),
    ],
)
def test_an_error_is_one_sentence(request_of: Read, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        request_of(**wrong)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 200


def test_a_recording_belongs_to_its_tasks(request_of: Read) -> None:
    assert request_of(**RECORDING).recording is None
    edit = request_of(task="Change a part", **RECORDING)
    assert (edit.recording, edit.region) == (Path("song.wav"), (0.1, 0.2))
    assert request_of(task="Continue a recording", **RECORDING).kept_seconds == 0.2


@pytest.mark.parametrize("text", ["20, 10,5 1", "1 1 1 500"])
def test_steps_are_read(text: str) -> None:
    assert len(read_steps(text, 4)) == 4


@pytest.mark.parametrize(
    "text", ["", "1,1,1", "1,1,1,1,1", "1,1,1,0", "1,1,1,501", "1,1,1,-1", "1,1,1,²", "a,b,c,d"]
)
def test_steps_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError, match="one for each codebook"):
        read_steps(text, 4)


def test_the_command_names_the_adapter_and_the_index(request_of: Read) -> None:
    source = ModelSource("my model", "cpu", "float32", "lora.ckpt", 0.5)
    words = command(request_of(text="-x"), 2, source)
    assert "--model 'my model' --adapter lora.ckpt --adapter_strength 0.5 --text=-x " in words
    assert " --seed 3 --first_index 2 " in words
    assert "--first_index" not in command(request_of(), 0, source)


@pytest.mark.parametrize(
    ("text", "kind"), [(ClassLabels(["low", "high"], 8), "dropdown"), (NoText(), "textbox")]
)
def test_other_texts(magnet: Magnet, monkeypatch: pytest.MonkeyPatch, text: Any, kind: str) -> None:
    monkeypatch.setattr(magnet._parts, "_text", text)
    with gr.Blocks():
        field = build_form(magnet)["text"]
    assert field.get_block_name() == kind
    assert field.interactive is not isinstance(text, NoText)
