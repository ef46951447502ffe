"""The form of the page: its fields, and what changing one of them shows."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import gradio as gr

from magnet_train.apps.demo.request import FORMATS, MAX_CLIPS, MAX_TEXT, Task, recording_seconds
from magnet_train.errors import UserError
from magnet_train.pipeline.magnet import Magnet
from magnet_train.text import ClassLabels, NoText

EXAMPLES = (  # shown to models that know their words
    "slow piano with soft strings, calm",
    "driving drum and bass with a deep bass",
    "a calm flute on high do",
)
# For events that answer at once: they skip the queue and show no progress bar.
IMMEDIATE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_form(magnet: Magnet) -> dict[str, Any]:
    """Lay out the fields and return them by name; `read_request` checks their values."""
    longest, fields = magnet.segment_duration, {}
    fields["task"] = gr.Radio([task.value for task in Task], value=Task.TEXT.value, label="What to make")
    fields["text"] = _text_field(magnet)
    fields["negative"] = gr.Textbox(
        label="Without",
        placeholder="what to avoid",
        max_length=MAX_TEXT,
        visible=not isinstance(magnet.text, NoText),
    )
    with gr.Column(visible=False) as recording_column:
        fields["recording"] = gr.Audio(
            label="Recording (wav, flac, ogg or mp3)",
            type="filepath",
            sources=["upload", "microphone"],
            editable=False,
            buttons=["download"],
        )
        note = gr.HTML(visible=False, elem_classes="note")
    with gr.Row(visible=False) as prompt_row:
        kept = round(min(3.0, longest / 2), 2)
        fields["kept_seconds"] = gr.Number(kept, label="Seconds to keep", step=0.1)
        fields["which"] = gr.Radio(["the last", "the first"], value="the last", label="Which seconds")
    with gr.Row(visible=False) as region_row:
        end = round(min(1.0, longest / 2), 2)
        fields["start"] = gr.Number(0, label="Regenerate from (s)", step=0.1)
        fields["end"] = gr.Number(end, label="to (s)", step=0.1)
    with gr.Row(visible=False) as bars_row:
        info = "of four beats; 0 takes the length below"
        fields["bars"] = gr.Number(0, label="Bars", info=info, step=1)
        fields["bpm"] = gr.Number(120, label="Tempo", info="beats per minute", step=1)
    fields["seconds"] = _length_field(magnet)
    fields |= _output_fields()
    fields |= _sampler_fields(magnet)
    for name, field in fields.items():
        field.elem_id = name

    def describe(path: str | None) -> tuple[Any, Any, Any]:
        return _describe_recording(path, longest)

    parts = [recording_column, prompt_row, region_row, bars_row, fields["seconds"], fields["loudness"]]
    fields["task"].change(_visibility, fields["task"], parts, **IMMEDIATE)
    # Typing a seed turns off the random one.
    fields["seed"].input(lambda: False, None, fields["random_seed"], **IMMEDIATE)
    described = [note, fields["start"], fields["end"]]
    fields["recording"].change(describe, fields["recording"], described, **IMMEDIATE)
    return fields


def _visibility(task: str) -> list[Any]:
    """Show the fields of a task: recording, seconds to keep, region, bars, length, loudness."""
    edits, continues = task == Task.EDIT, task == Task.CONTINUE
    visible = (edits or continues, continues, edits, task == Task.LOOP, not edits, not edits)
    return [gr.update(visible=value) for value in visible]


def _output_fields() -> dict[str, Any]:
    fields = {}
    fields["clips"] = gr.Slider(1, MAX_CLIPS, value=2, step=1, label="Variations", info="with the same seed")
    with gr.Row(equal_height=True):
        fields["seed"] = gr.Number(0, label="Seed", info="same seed, same sound", step=1)
        fields["random_seed"] = gr.Checkbox(True, label="Random seed", info="a new one for each request")
    with gr.Row(equal_height=True):
        fields["format"] = gr.Radio(list(FORMATS), value=FORMATS[0], label="Format")
        fields["loudness"] = gr.Number(None, label="Loudness (LUFS)", info="such as -14; 0 leaves it", step=1)
    return fields


def _describe_recording(path: str | None, longest: float) -> tuple[Any, Any, Any]:
    """Show a recording's length, and propose its middle as the region to edit."""

    def show(text: str) -> Any:
        return gr.update(value=f"<p>{html.escape(text)}</p>", visible=True)

    if path is None:
        return gr.update(visible=False), gr.skip(), gr.skip()
    try:
        length = recording_seconds(Path(path))
    except UserError as error:
        return show(as_sentence(str(error))), gr.skip(), gr.skip()
    half, digits = min(length, longest) / 4, 1 if length >= 1 else 2
    start, end = round(length / 2 - half, digits), round(length / 2 + half, digits)
    return show(f"{Path(path).name}: {length:.2f} s"), start, end


def _text_field(magnet: Magnet) -> Any:
    if isinstance(magnet.text, ClassLabels):
        return gr.Dropdown(["", *magnet.text.labels], value="", label="Label")
    if isinstance(magnet.text, NoText):
        return gr.Textbox(label="Text (this model takes none)", interactive=False, lines=2)
    hint = "describe the sound, or leave this empty"
    text = gr.Textbox(
        label="Text", placeholder=hint, interactive=True, lines=2, max_length=MAX_TEXT, autofocus=True
    )
    examples = [[example] for example in EXAMPLES if not magnet.unknown_words([example])]
    if examples:
        gr.Examples(examples, text, label="Examples")
    return text


def _length_field(magnet: Magnet) -> Any:
    """Offer lengths from one masking span to the clip length of the model's training."""
    longest, frame = magnet.segment_duration, 1 / magnet.codec.frame_rate
    step = 0.1 if longest >= 2 and math.isclose(longest * 10, round(longest * 10)) else frame
    shortest = min(longest, round(math.ceil(magnet.lm.span_len * frame / step - 1e-6) * step, 6))
    return gr.Slider(shortest, longest, value=longest, step=step, label="Length of the clip (s)")


def _sampler_fields(magnet: Magnet) -> dict[str, Any]:
    own, fields = magnet.decoding, {}
    with gr.Accordion("Advanced: sampler settings", open=False):
        info = f"for each of the {magnet.lm.n_q} codebooks, coarse to fine; more steps take longer"
        steps = ", ".join(map(str, own.decoding_steps))
        fields["steps"] = gr.Textbox(steps, label="Steps", info=info, max_length=100)
        with gr.Row():
            info = "higher is more random"
            fields["temperature"] = gr.Number(own.temperature, label="Temperature", info=info, step=0.1)
            fields["constant_temperature"] = gr.Checkbox(
                not own.anneal_temperature,
                label="Constant temperature",
                info="otherwise it falls to 0 within each codebook",
            )
        info = "sample from the most probable tokens up to this total probability; 0 turns it off"
        fields["top_p"] = gr.Slider(0, 1, value=own.top_p, step=0.01, label="top_p", info=info)
        with gr.Row():
            info = "1 is off; higher follows the text more closely"
            fields["guidance"] = gr.Number(
                own.max_cfg_coef, label="Guidance at the start", info=info, step=0.5
            )
            info = "of each codebook, when nothing is masked"
            fields["last_guidance"] = gr.Number(
                own.min_cfg_coef, label="Guidance at the end", info=info, step=0.5
            )
    return fields


def as_sentence(message: str) -> str:
    """Capitalise an error for the page."""
    return message[:1].upper() + message[1:]
