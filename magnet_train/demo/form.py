"""What a visitor fills in: the fields of the page, and how they are read."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from magnet_train.demo.job import as_sentence, random_seed, recording_seconds
from magnet_train.demo.order import MOST_CLIPS, Kind, Order, read_steps, with_sampler
from magnet_train.errors import UserError
from magnet_train.magnet import Magnet
from magnet_train.text import ClassLabels, NoText

LONGEST_TEXT = 1000  # characters
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # the page has its own bar


def lay_out_form(magnet: Magnet) -> dict[str, Any]:
    """Lay out what a visitor fills in; the keys are the arguments of `read_form`, in the order of the API."""
    longest = magnet.segment_duration
    # Ranges of numbers are left to `Order` and `DecodingConfig`: gradio would tell the terminal with a traceback.
    kind = gr.Radio(
        [kind.value for kind in Kind], value=Kind.TEXT.value, label="What to make", elem_id="kind"
    )
    text = _text_field(magnet)
    with gr.Column(visible=False) as recording_part:
        recording = gr.Audio(
            label="Recording (wav, flac, ogg or mp3)",
            type="filepath",
            sources=["upload", "microphone"],
            editable=False,
            buttons=["download"],
            elem_id="recording",
        )
        length = gr.HTML(visible=False, elem_classes="note", padding=False)
    with gr.Row(visible=False) as keep_row:
        kept_seconds = gr.Number(
            round(min(3.0, longest / 2), 2), label="Seconds to keep", step=0.1, min_width=120
        )
        which = gr.Radio(["the last", "the first"], value="the last", label="Which of them", min_width=150)
    with gr.Row(visible=False) as region_row:
        start = gr.Number(0, label="Make anew from (s)", step=0.1, min_width=120)
        end = gr.Number(round(min(1.0, longest / 2), 2), label="to (s)", step=0.1, min_width=120)
    seconds = _length_field(magnet)
    clips = gr.Slider(
        1, MOST_CLIPS, value=2, step=1, label="Variations", info="each with the next seed", elem_id="clips"
    )
    with gr.Row(equal_height=True):
        seed = gr.Number(
            0,
            label="Seed",
            info="same seed, same sound",
            precision=0,
            min_width=140,
            elem_id="seed",
        )
        surprise = gr.Checkbox(
            True, label="Surprise me", info="a new seed each time", min_width=140, elem_id="surprise"
        )
    steps, temperature, top_p, guidance, last_guidance = _sampler_fields(magnet)
    kind.change(_show_fields, kind, [recording_part, keep_row, region_row, seconds], queue=False, **QUIET)
    seed.input(lambda: False, None, surprise, queue=False, **QUIET)  # who types a seed wants that one
    recording.change(describing(longest), recording, [length, start, end], **QUIET)
    return {
        "kind": kind,
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
        "steps": steps,
        "temperature": temperature,
        "top_p": top_p,
        "guidance": guidance,
        "last_guidance": last_guidance,
    }


def _text_field(magnet: Magnet) -> Any:
    if isinstance(magnet.text, ClassLabels):
        return gr.Dropdown(["", *magnet.text.labels], value="", label="Label", elem_id="text")
    knows = not isinstance(magnet.text, NoText)
    return gr.Textbox(
        label="Text" if knows else "Text (this model was trained without)",
        placeholder="what it should sound like; empty leaves it to the model" if knows else "",
        interactive=knows,
        lines=2,
        max_length=LONGEST_TEXT,
        autofocus=knows,
        elem_id="text",
    )


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
        elem_id="seconds",
    )


def _sampler_fields(magnet: Magnet) -> tuple[Any, Any, Any, Any, Any]:
    own = magnet.decoding
    with gr.Accordion("Advanced: how the sampler works", open=False):
        steps = gr.Textbox(
            ", ".join(map(str, own.decoding_steps)),
            label="Steps",
            info=f"for each of the {magnet.lm.n_q} codebooks, coarse to fine; more take longer",
            max_length=100,
        )
        temperature = gr.Number(
            own.temperature,
            label="Temperature",
            info="0 or more: randomness at the start of each codebook",
            step=0.1,
        )
        top_p = gr.Slider(
            0,
            1,
            value=own.top_p,
            step=0.01,
            label="top_p",
            info="share of the probability to sample from, 0..1; 0 turns it off",
        )
        with gr.Row():
            guidance = gr.Number(
                own.max_cfg_coef,
                label="Guidance at first",
                info="1 is none; more exaggerates the text",
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
    return steps, temperature, top_p, guidance, last_guidance


def _show_fields(kind: str) -> tuple[Any, Any, Any, Any]:
    """Show the fields of what is to be made: recording, seconds to keep, region, length."""
    return (
        gr.update(visible=kind in (Kind.CONTINUE, Kind.EDIT)),
        gr.update(visible=kind == Kind.CONTINUE),
        gr.update(visible=kind == Kind.EDIT),
        gr.update(visible=kind != Kind.EDIT),
    )


def describing(longest: float) -> Callable[[str | None], tuple[Any, Any, Any]]:
    """Return what says how long a recording is, and proposes its middle as the region to make anew."""

    def describe(recording: str | None) -> tuple[Any, Any, Any]:
        if recording is None:
            return gr.update(visible=False), gr.skip(), gr.skip()
        path = Path(recording)
        try:
            seconds = recording_seconds(path)
        except UserError as error:
            return gr.update(value=_note(as_sentence(error)), visible=True), gr.skip(), gr.skip()
        half = min(seconds, longest) / 4
        return (
            gr.update(value=_note(f"{path.name}: {seconds:.2f} s"), visible=True),
            round(seconds / 2 - half, 1 if seconds >= 1 else 2),
            round(seconds / 2 + half, 1 if seconds >= 1 else 2),
        )

    return describe


def _note(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def read_form(
    magnet: Magnet,
    kind: str,
    text: str | None,
    seconds: float,
    clips: float,
    seed: float | None,
    surprise: bool,
    recording: str | None,
    kept_seconds: float | None,
    which: str,
    start: float | None,
    end: float | None,
    steps: str,
    temperature: float | None,
    top_p: float,
    guidance: float | None,
    last_guidance: float | None,
) -> Order:
    """Read the form.

    Raises:
        UserError: A field is empty or cannot be read.
    """
    own = magnet.decoding
    if kind not in list(Kind):
        raise UserError(f"{kind!r} cannot be made; choose one of {', '.join(Kind)}.")
    decoding = with_sampler(
        own,
        read_steps(steps, magnet.lm.n_q),
        own.temperature if temperature is None else temperature,
        top_p,
        (
            own.max_cfg_coef if guidance is None else guidance,
            own.min_cfg_coef if last_guidance is None else last_guidance,
        ),
    )
    return Order(
        Kind(kind),
        (text or "").strip(),
        min(seconds, magnet.segment_duration),
        random_seed() if surprise or seed is None else int(seed),
        int(clips),
        decoding,
        None if recording is None else Path(recording),
        kept_seconds or 0.0,
        which == "the last",
        (start or 0.0, end or 0.0),
    )
