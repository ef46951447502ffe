"""What the page looks like, and which button calls what. The work is done in `jobs`."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from magnet_train.checkpoints.licence import UNSPECIFIED, note_on
from magnet_train.demo.jobs import Clip, Studio, Update, as_sentence, random_seed, recording_seconds
from magnet_train.demo.order import LARGEST_SEED, MOST_CLIPS, Kind, Order, read_steps, with_sampler
from magnet_train.errors import UserError
from magnet_train.magnet import Magnet
from magnet_train.models.transformer import count_parameters
from magnet_train.text import ClassLabels, NoText

LONGEST_TEXT = 1000  # characters
CLEAN_EVERY, CLEAN_OLDER = 600, 3600  # s: uploads and clips that are older are deleted
VISITORS_AT_ONCE = 32  # that are listened to; one is worked for, the others hear how many come before them
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # the page has its own bar

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Return colours, and the system's fonts: a theme's own would be fetched from another host."""
    colours = gr.themes.Default(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    # The theme's own grey is too light on white to be read easily.
    return colours.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")


def build_page(studio: Studio, name: str) -> gr.Blocks:
    """Lay out the page.

    Args:
        studio: Does the work.
        name: What to call the model.
    """
    with gr.Blocks(
        analytics_enabled=False, title=f"{name} - magnet-train", delete_cache=(CLEAN_EVERY, CLEAN_OLDER)
    ) as page:
        gr.HTML(_heading(studio.magnet, name), padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                fields = _form(studio.magnet)
                with gr.Row():
                    generate = gr.Button(
                        "Generate", variant="primary", scale=3, min_width=140, elem_id="generate"
                    )
                    cancel = gr.Button("Cancel", interactive=False, min_width=90, elem_id="cancel")
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(_status(None), elem_id="status", padding=False)
                kept = gr.File(label="What was kept of the recording", visible=False)
                with gr.Row(equal_height=False):
                    slots = [part for index in range(MOST_CLIPS) for part in _slot(index)]
        _wire(page, studio, fields, [generate, cancel, status, kept, *slots])
    return page


def _heading(magnet: Magnet, name: str) -> str:
    codec = magnet.codec
    facts = [
        f"MAGNeT of {count_parameters(magnet.lm):,} parameters",
        f"clips of up to {magnet.segment_duration:g} s",
        f"{codec.sample_rate / 1000:g} kHz {'mono' if codec.channels == 1 else 'stereo'}",
        f"{codec.n_q} codebooks at {codec.frame_rate:g} frames/s",
        f"on {magnet.device}",
    ]
    if magnet.licence != UNSPECIFIED:
        facts.append(f"licence {magnet.licence}")
    lines = [f"<h1>{html.escape(name)}</h1>", f"<p>{html.escape(' · '.join(facts))}</p>"]
    if note := note_on(magnet.licence):
        lines.append(f"<p>{html.escape(note)}</p>")
    return f"<header class='about'>{''.join(lines)}</header>"


def _form(magnet: Magnet) -> dict[str, Any]:
    """Lay out what a visitor fills in; the keys are the arguments of `_order`, in the order of the API."""
    longest = magnet.segment_duration
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
            round(min(3.0, longest / 2), 2), label="Seconds to keep", minimum=0, step=0.1, min_width=120
        )
        which = gr.Radio(["the last", "the first"], value="the last", label="Which of them", min_width=150)
    with gr.Row(visible=False) as region_row:
        start = gr.Number(0, label="Make anew from (s)", minimum=0, step=0.1, min_width=120)
        end = gr.Number(round(min(1.0, longest / 2), 2), label="to (s)", minimum=0, step=0.1, min_width=120)
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
            minimum=0,
            maximum=LARGEST_SEED,
            min_width=140,
            elem_id="seed",
        )
        surprise = gr.Checkbox(
            True, label="Surprise me", info="a new seed each time", min_width=140, elem_id="surprise"
        )
    steps, temperature, top_p, guidance, last_guidance = _sampler_fields(magnet)
    kind.change(_show_fields, kind, [recording_part, keep_row, region_row, seconds], queue=False, **QUIET)
    seed.input(lambda: False, None, surprise, queue=False, **QUIET)  # who types a seed wants that one
    recording.change(_describing(longest), recording, [length, start, end], **QUIET)
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
            minimum=0,
            maximum=100,
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
                minimum=-100,
                maximum=100,
                step=0.5,
                min_width=140,
            )
            last_guidance = gr.Number(
                own.min_cfg_coef,
                label="Guidance at last",
                info="when nothing is masked any more",
                minimum=-100,
                maximum=100,
                step=0.5,
                min_width=140,
            )
    return steps, temperature, top_p, guidance, last_guidance


def _slot(index: int) -> tuple[Any, Any, Any, Any]:
    """Lay out the place of one clip: hidden until there is one."""
    with gr.Column(visible=False, min_width=240) as column:
        audio = gr.Audio(
            label=f"Clip {index + 1}",
            interactive=False,
            editable=False,
            buttons=["download"],
            elem_id=f"audio_{index}",
        )
        pictures = gr.HTML(padding=False)
        how = gr.Code(
            label="How to make it again",
            language="shell",
            interactive=False,
            wrap_lines=True,
            show_line_numbers=False,
            buttons=["copy"],
            lines=4,
            elem_id=f"settings_{index}",
        )
    return column, audio, pictures, how


def _show_fields(kind: str) -> tuple[Any, Any, Any, Any]:
    """Show the fields of what is to be made: recording, seconds to keep, region, length."""
    return (
        gr.update(visible=kind in (Kind.CONTINUE, Kind.EDIT)),
        gr.update(visible=kind == Kind.CONTINUE),
        gr.update(visible=kind == Kind.EDIT),
        gr.update(visible=kind != Kind.EDIT),
    )


def _describing(longest: float) -> Callable[[str | None], tuple[Any, Any, Any]]:
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


def _wire(page: gr.Blocks, studio: Studio, fields: dict[str, Any], outputs: list[Any]) -> None:
    generate, cancel = outputs[:2]
    names = list(fields)

    def make(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        form = dict(zip(names, values, strict=True))
        yield from _make(studio, form, str(request.session_hash))

    def stop(request: gr.Request) -> None:
        studio.cancel(str(request.session_hash))

    # The page waits with its next order until this one has ended; others' orders stand in the studio's queue.
    gr.on(
        [generate.click, *([fields["text"].submit] if hasattr(fields["text"], "submit") else [])],
        make,
        list(fields.values()),
        [fields["seed"], *outputs],
        concurrency_limit=VISITORS_AT_ONCE,
        show_progress="hidden",
        trigger_mode="once",
        api_name="generate",
    )
    cancel.click(stop, None, None, queue=False, **QUIET)
    page.unload(stop)


def _make(studio: Studio, form: dict[str, Any], visitor: str) -> Iterator[list[Any]]:
    """Yield changes to seed, both buttons, status, kept part and the places of the clips."""
    try:
        order = _order(studio.magnet, **form)
    except UserError as error:
        yield [gr.skip(), *_changes(Update("failed", as_sentence(error)), None)]
        return
    told = None
    for update in studio.make(order, visitor):
        yield [order.seed if told is None else gr.skip(), *_changes(update, told)]
        told = update


def _order(
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


def _changes(update: Update, told: Update | None) -> list[Any]:
    """Return what changes on the page: both buttons, status, kept part and the places of the clips.

    A clip that is there is not sent again: somebody may be listening to it.
    """
    busy = update.state in ("waiting", "working")
    changes: list[Any] = [gr.update(interactive=not busy), gr.update(interactive=busy), _status(update)]
    kept = None if told is None else told.kept
    changes.append(gr.skip() if update.kept == kept else gr.update(value=_path(update.kept), visible=True))
    before = 0 if told is None else len(told.clips)
    for index in range(MOST_CLIPS):
        if before <= index < len(update.clips):
            changes += _shown(update.clips[index])
        elif told is None and busy:
            changes += [gr.update(visible=False), None, None, None]
        else:
            changes += [gr.skip()] * 4
    if told is None and busy and update.kept is None:
        changes[3] = gr.update(value=None, visible=False)
    return changes


def _shown(clip: Clip) -> list[Any]:
    audio = gr.update(value=str(clip.audio), label=f"Seed {clip.seed}", loop=clip.loops)
    return [gr.update(visible=True), audio, _pictures(clip), clip.settings]


def _pictures(clip: Clip) -> str:
    """Draw both pictures under the player, as wide as it: time goes to the right in all three."""
    return "".join(
        f"<figure class='{kind}'><img src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}' "
        f"alt='{name}'><figcaption>{name}: {words}</figcaption></figure>"
        for kind, path, name, words in (
            ("sound", clip.sound, "spectrogram", "time to the right, frequency up"),
            (
                "tokens",
                clip.order,
                "order of tokens",
                "a row for each codebook; light was found first, grey was given",
            ),
        )
    )


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _status(update: Update | None) -> str:
    """Write how far it is in HTML, for eyes and for screen readers."""
    if update is None:
        return "<div class='state' role='status'><p>What you make appears here.</p></div>"
    role = "alert" if update.state == "failed" else "status"
    bar = f"<progress value='{update.share:.3f}' max='1'></progress>" if update.state == "working" else ""
    return f"<div class='state {update.state}' role='{role}'><p>{html.escape(update.message)}</p>{bar}</div>"


def _note(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"
