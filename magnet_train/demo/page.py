"""What the page looks like, and which button calls what. The work is done in `studio` and `job`."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from magnet_train.checkpoints.licence import UNSPECIFIED, note_on
from magnet_train.demo.form import QUIET, lay_out_form, read_form
from magnet_train.demo.job import Update, as_sentence
from magnet_train.demo.order import MOST_CLIPS
from magnet_train.demo.results import changes_of, lay_out_place, status_of
from magnet_train.demo.studio import Studio
from magnet_train.errors import UserError
from magnet_train.magnet import Magnet
from magnet_train.models.transformer import count_parameters

CLEAN_EVERY, CLEAN_OLDER = 600, 3600  # s: uploads and clips that are older are deleted
VISITORS_AT_ONCE = 32  # that are listened to; one is worked for, the others hear how many come before them

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
                fields = lay_out_form(studio.magnet)
                with gr.Row():
                    generate = gr.Button(
                        "Generate", variant="primary", scale=3, min_width=140, elem_id="generate"
                    )
                    cancel = gr.Button("Cancel", interactive=False, min_width=90, elem_id="cancel")
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(status_of(None), elem_id="status", padding=False)
                kept = gr.File(label="What was kept of the recording", visible=False)
                with gr.Row(equal_height=False):
                    slots = [part for index in range(MOST_CLIPS) for part in lay_out_place(index)]
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
        order = read_form(studio.magnet, **form)
    except UserError as error:
        yield [gr.skip(), *changes_of(Update("failed", as_sentence(error)), None)]
        return
    told = None
    for update in studio.make(order, visitor):
        yield [order.seed if told is None else gr.skip(), *changes_of(update, told)]
        told = update
