"""The page: what comes back to a visitor, and which button calls what. The fields are in `form`."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import torch
from gradio_client.utils import is_file_obj_with_meta, traverse

from magnet_train.apps.demo.clip_request import MOST_CLIPS, read_request
from magnet_train.apps.demo.form import QUIET, as_sentence, lay_out_form
from magnet_train.apps.demo.service import Cancelled, Clip, ClipService
from magnet_train.checkpoints.bundle import UNSPECIFIED
from magnet_train.checkpoints.card import note_on
from magnet_train.errors import UserError
from magnet_train.models.transformer import count_parameters
from magnet_train.pipeline.magnet import Magnet

CLEAN_EVERY, CLEAN_OLDER = 600, 3600  # s: uploads and clips that are older are deleted
EARLIER_CLIPS = 20  # that stay visible
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
PROGRESS = gr.Progress()  # as a default of an argument, gradio puts a request's own in its place

_log = logging.getLogger(__name__)


class Page(gr.Blocks):  # type: ignore[misc]  # gradio is skipped by mypy
    """Blocks that take files from their own uploads alone, and tell a client what is wrong in a sentence.

    gradio lets addresses pass where it checks paths, for every kind of field, and would fetch them.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Check and convert what a client sent for the inputs of a function."""
        try:
            traverse(inputs, _require_upload, is_file_obj_with_meta)
            values: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return values
        except UserError as error:
            sentence = str(error)
        except gr.Error as error:  # gradio's own check of a choice or a range
            sentence = str(error.message)
        except Exception as error:
            sentence = f"this request cannot be read ({type(error).__name__})."
        raise gr.Error(html.escape(as_sentence(sentence[:500])), print_exception=False)


def _require_upload(reference: dict[str, Any]) -> dict[str, Any]:
    """Raise `UserError` for a file that is not one of the page's uploads and clips."""
    path = Path(reference["path"])
    if not path.resolve().is_relative_to(gr.utils.get_upload_folder()) or not path.is_file():
        raise UserError("the recording is not an upload of this page; upload it again.")
    return reference


def theme() -> gr.themes.Base:
    """Return colours, and the system's fonts: a theme's own would be fetched from another host."""
    colours = gr.themes.Default(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    # The theme's own grey is too light on white to be read easily.
    return colours.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")


def build_page(service: ClipService, name: str) -> Page:
    """Lay out the page.

    Args:
        service: Makes the clips.
        name: What to call the model.
    """
    page = Page(
        analytics_enabled=False, title=f"{name} - magnet-train", delete_cache=(CLEAN_EVERY, CLEAN_OLDER)
    )
    with page:
        gr.HTML(_heading(service.magnet, name))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                fields = lay_out_form(service.magnet)
                with gr.Row():
                    generate = gr.Button(
                        "Generate", variant="primary", scale=3, min_width=140, elem_id="generate"
                    )
                    cancel = gr.Button("Cancel", min_width=90, elem_id="cancel")
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(
                    status_of("idle", "What you make appears here."), elem_id="status", min_height=70
                )
                kept = gr.File(label="What was kept of the recording", visible=False, elem_id="kept")
                with gr.Row(equal_height=False):
                    places = [_lay_out_place(index) for index in range(MOST_CLIPS)]
                earlier = gr.HTML(elem_id="earlier")
        clips = gr.State([])  # a visitor's own, the newest last

        def make(
            values: dict[Any, Any], request: gr.Request, progress: gr.Progress = PROGRESS
        ) -> Iterator[dict[Any, Any]]:
            form = {name: values[field] for name, field in fields.items()}
            made: list[Clip] = []
            before: list[Clip] = values[clips][-EARLIER_CLIPS:]
            try:
                wanted = read_request(service.magnet, form)
                yield {
                    fields["seed"]: wanted.seed,
                    generate: gr.update(interactive=False),
                    status: status_of("working", "Starting."),
                    kept: gr.update(visible=False),
                    earlier: _earlier(before),
                    **{column: gr.update(visible=False) for column, *_ in places},
                }
                for clip in service.make(wanted, str(request.session_hash), progress):
                    shown = _shown(clip, places[len(made)])
                    made.append(clip)
                    if clip.kept is not None:
                        shown[kept] = gr.update(value=str(clip.kept), visible=True)
                    yield {**shown, clips: [*before, *made]}
                end = status_of(
                    "done", _what_was_made(len(made), service.magnet.unknown_words([wanted.text]))
                )
            except Exception as error:
                end = _how_it_ended(error)
            yield {status: end, generate: gr.update(interactive=True)}

        def stop(request: gr.Request) -> tuple[str, Any]:
            service.cancel(str(request.session_hash))
            return status_of("stopped", "Cancelled."), gr.update(interactive=True)

        def leave(request: gr.Request) -> None:
            service.cancel(str(request.session_hash))

        text = fields["text"]
        making = gr.on(
            [generate.click, *([text.submit] if isinstance(text, gr.Textbox) else [])],
            make,
            {*fields.values(), clips},
            [
                fields["seed"],
                generate,
                status,
                kept,
                earlier,
                clips,
                *(part for place in places for part in place),
            ],
            show_progress_on=status,
            trigger_mode="once",
            api_name="generate",
        )
        cancel.click(stop, None, [status, generate], **QUIET)  # a clip at work
        cancel.click(None, cancels=making)  # a place in the queue
        page.unload(leave)
    return page


def _what_was_made(clips: int, unknown: Sequence[str]) -> str:
    words = f" The model does not know {', '.join(unknown)}." if unknown else ""
    return f"Made {clips} clip{'s' if clips > 1 else ''}.{words}"


def _how_it_ended(error: Exception) -> str:
    """Say why clips were not made; of what is not the visitor's to mend, the terminal says more."""
    if isinstance(error, Cancelled):
        return status_of("stopped", "Cancelled.")
    if isinstance(error, UserError):
        return status_of("failed", as_sentence(str(error)))
    if isinstance(error, torch.OutOfMemoryError):
        return status_of(
            "failed", "The device has no memory left for this; make a shorter clip, or ask later."
        )
    _log.error("the page could not make a clip", exc_info=error)
    return status_of(
        "failed",
        f"This went wrong and is not your fault ({type(error).__name__}); the terminal in which magnet-train demo "
        "runs says more.",
    )


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


def _lay_out_place(index: int) -> tuple[Any, Any, Any, Any]:
    """Lay out the place of one clip: hidden until there is one."""
    with gr.Column(visible=False, min_width=300) as column:
        audio = gr.Audio(
            label=f"Clip {index + 1}",
            interactive=False,
            editable=False,
            buttons=["download"],
            elem_id=f"audio_{index}",
        )
        picture = gr.Image(
            show_label=False,
            interactive=False,
            buttons=[],
            container=False,
            alt_text="spectrogram",
            elem_id=f"picture_{index}",
        )
        how = gr.Code(
            label="How to make it again",
            language="shell",
            interactive=False,
            wrap_lines=True,
            show_line_numbers=False,
            buttons=["copy"],
            lines=4,
            elem_id=f"command_{index}",
        )
    return column, audio, picture, how


def _shown(clip: Clip, place: Sequence[Any]) -> dict[Any, Any]:
    column, audio, picture, how = place
    return {
        column: gr.update(visible=True),
        audio: gr.update(value=str(clip.audio), label=clip.title, loop=clip.loops),
        picture: str(clip.picture),
        how: clip.command,
    }


def _earlier(clips: Sequence[Clip]) -> str:
    """List clips of earlier requests, the newest first."""
    if not clips:
        return ""
    rows = (
        f"<details><summary>{html.escape(clip.title)}</summary>"
        f"<audio controls preload='none'{' loop' if clip.loops else ''} src='gradio_api/file={quote(str(clip.audio))}'>"
        f"</audio><pre>{html.escape(clip.command)}</pre></details>"
        for clip in reversed(clips)
    )
    return f"<section class='earlier'><h2>Earlier</h2>{''.join(rows)}</section>"


def status_of(state: str, message: str) -> str:
    """Write how far it is in HTML, for eyes and for screen readers."""
    role = "alert" if state == "failed" else "status"
    return f"<div class='state {state}' role='{role}'><p>{html.escape(message)}</p></div>"
