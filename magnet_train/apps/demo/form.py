"""What a visitor fills in: the fields of the page, and which of them belong to which task."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import gradio as gr

from magnet_train.apps.demo.clip_request import LONGEST_TEXT, MOST_CLIPS, Task
from magnet_train.apps.demo.service import recording_seconds
from magnet_train.errors import UserError
from magnet_train.pipeline.magnet import Magnet
from magnet_train.text import ClassLabels, NoText

EXAMPLES = [  # of which a model with a small vocabulary shows what it knows
    "slow piano with soft strings, calm",
    "driving drum and bass with a deep bass",
    "a calm flute on high do",
]
QUIET: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
}  # the page has its own news


def lay_out_form(magnet: Magnet) -> dict[str, Any]:
    """Lay out what a visitor fills in; ranges of numbers are checked by `read_request`."""
    longest = magnet.segment_duration
    task = gr.Radio([task.value for task in Task], value=Task.TEXT.value, label="What to make")
    text = _text_field(magnet)
    with gr.Column(visible=False) as recording_part:
        recording = gr.Audio(
            label="Recording (wav, flac, ogg or mp3)",
            type="filepath",
            sources=["upload", "microphone"],
            editable=False,
            buttons=["download"],
        )
        length = gr.HTML(visible=False, elem_classes="note")
    with gr.Row(visible=False) as keep_row:
        kept_seconds = gr.Number(
            round(min(3.0, longest / 2), 2), label="Seconds to keep", step=0.1, min_width=120
        )
        which = gr.Radio(["the last", "the first"], value="the last", label="Which of them", min_width=150)
    with gr.Row(visible=False) as region_row:
        start = gr.Number(0, label="Make again from (s)", step=0.1, min_width=120)
        end = gr.Number(round(min(1.0, longest / 2), 2), label="to (s)", step=0.1, min_width=120)
    seconds = _length_field(magnet)
    clips = gr.Slider(1, MOST_CLIPS, value=2, step=1, label="Variations", info="of one seed")
    with gr.Row(equal_height=True):
        seed = gr.Number(0, label="Seed", info="same seed, same sound", step=1, min_width=140)
        surprise = gr.Checkbox(True, label="Surprise me", info="a new seed each time", min_width=140)

    def show_fields(task: str) -> list[Any]:
        shown = (
            task in (Task.CONTINUE, Task.EDIT),
            task == Task.CONTINUE,
            task == Task.EDIT,
            task != Task.EDIT,
        )
        return [gr.update(visible=visible) for visible in shown]

    def describe(recording: str | None) -> tuple[Any, Any, Any]:
        """Say how long a recording is, and propose its middle as the region."""
        if recording is None:
            return gr.update(visible=False), gr.skip(), gr.skip()
        try:
            length = recording_seconds(Path(recording))
        except UserError as error:
            return _note(as_sentence(str(error))), gr.skip(), gr.skip()
        half, digits = min(length, longest) / 4, 1 if length >= 1 else 2
        return (
            _note(f"{Path(recording).name}: {length:.2f} s"),
            round(length / 2 - half, digits),
            round(length / 2 + half, digits),
        )

    fields = {
        "task": task,
        "text": text,
        "seconds": seconds,
        "clips": clips,
        "seed": seed,
        "surprise": surprise,
        "recording": recording,
        "kept_seconds": kept_seconds,
        "which": which,
        "start": start,
        "end": end,
        **_sampler_fields(magnet),
    }
    for name, field in fields.items():
        field.elem_id = name
    task.change(show_fields, task, [recording_part, keep_row, region_row, seconds], **QUIET)
    seed.input(lambda: False, None, surprise, **QUIET)  # who types a seed wants that one
    recording.change(describe, recording, [length, start, end], **QUIET)
    return fields


def _text_field(magnet: Magnet) -> Any:
    if isinstance(magnet.text, ClassLabels):
        return gr.Dropdown(["", *magnet.text.labels], value="", label="Label")
    knows = not isinstance(magnet.text, NoText)
    text = gr.Textbox(
        label="Text" if knows else "Text (this model was trained without)",
        placeholder="what it should sound like; empty leaves it to the model" if knows else "",
        interactive=knows,
        lines=2,
        max_length=LONGEST_TEXT,
        autofocus=knows,
    )
    if examples := [example for example in EXAMPLES if knows and not magnet.unknown_words([example])]:
        gr.Examples(examples, text, label="For example", elem_id="examples")
    return text


def _length_field(magnet: Magnet) -> Any:
    """Offer lengths from one span up to what the model was trained for."""
    longest, frame = magnet.segment_duration, 1 / magnet.codec.frame_rate
    tenths = longest >= 2 and math.isclose(longest * 10, round(longest * 10))
    step = 0.1 if tenths else frame
    shortest = round(math.ceil(magnet.lm.span_len * frame / step - 1e-6) * step, 6)
    return gr.Slider(
        min(shortest, longest),
        longest,
        value=longest,
        step=step,
        label="Length of the clip (s)",
    )


def _sampler_fields(magnet: Magnet) -> dict[str, Any]:
    own = magnet.decoding
    with gr.Accordion("Advanced: how the sampler works", open=False):
        steps = gr.Textbox(
            ", ".join(map(str, own.decoding_steps)),
            label="Steps",
            info=f"for each of the {magnet.lm.n_q} codebooks, coarse to fine; more take longer",
            max_length=100,
        )
        with gr.Row():
            temperature = gr.Number(
                own.temperature, label="Temperature", info="0 or more: randomness", step=0.1, min_width=140
            )
            constant = gr.Checkbox(
                not own.anneal_temperature,
                label="Constant temperature",
                info="instead of falling to 0 within each codebook",
                min_width=140,
            )
        top_p = gr.Slider(
            0,
            1,
            value=own.top_p,
            step=0.01,
            label="top_p",
            info="share of the probability to sample from; 0 is off",
        )
        with gr.Row():
            guidance = gr.Number(
                own.max_cfg_coef,
                label="Guidance at first",
                info="1 is off; more exaggerates the text",
                step=0.5,
                min_width=140,
            )
            last_guidance = gr.Number(
                own.min_cfg_coef,
                label="Guidance at last",
                info="when nothing is masked any more",
                step=0.5,
                min_width=140,
            )
    return {
        "steps": steps,
        "temperature": temperature,
        "constant_temperature": constant,
        "top_p": top_p,
        "guidance": guidance,
        "last_guidance": last_guidance,
    }


def _note(text: str) -> Any:
    return gr.update(value=f"<p>{html.escape(text)}</p>", visible=True)


def as_sentence(message: str) -> str:
    """Begin an error as the page's other sentences begin."""
    return message[:1].upper() + message[1:]
