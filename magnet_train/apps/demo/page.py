"""The page: layout, and what its buttons do."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta, traverse

from magnet_train.apps.demo.form import IMMEDIATE, as_sentence, build_form
from magnet_train.apps.demo.request import MAX_CLIPS, read_request
from magnet_train.apps.demo.service import Cancelled, Clip, ClipService
from magnet_train.checkpoints.bundle import UNSPECIFIED
from magnet_train.checkpoints.card import note_on
from magnet_train.errors import UserError
from magnet_train.models.memory import is_full_memory
from magnet_train.models.transformer import count_parameters
from magnet_train.pipeline.magnet import Magnet

DELETE_EVERY, DELETE_OLDER = 600, 3600  # s: how often uploads and clips are deleted, and from which age on
EARLIER_CLIPS = 20  # of a visitor that stay on the page
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
PROGRESS = gr.Progress()  # a default that gradio replaces with the request's own

_log = logging.getLogger(__name__)


class Page(gr.Blocks):  # type: ignore[misc]  # gradio is skipped by mypy
    """Blocks that take no files but their own uploads, and whose input errors are one sentence.

    gradio's check of paths lets URLs pass, in every kind of field, and would fetch them.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        try:
            traverse(inputs, _check_upload, is_file_obj_with_meta)
            values: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return values
        except UserError as error:
            sentence = str(error)
        except gr.Error as error:  # gradio's own check of a choice or a range
            sentence = str(error.message)
        except Exception as error:
            sentence = f"this request cannot be read ({type(error).__name__})."
        raise gr.Error(html.escape(as_sentence(sentence[:500])), print_exception=False)


def _check_upload(reference: dict[str, Any]) -> dict[str, Any]:
    """Raise `UserError` for a file that is not one of the page's uploads and clips."""
    path = Path(reference["path"])
    if not path.resolve().is_relative_to(gr.utils.get_upload_folder()) or not path.is_file():
        raise UserError("the recording is not an upload of this page; upload it again.")
    return reference


class _Results:
    """The column of results: status, the clips side by side, and the earlier ones."""

    def __init__(self) -> None:
        idle = status_html("idle", "Clips appear here.")
        self.status = gr.HTML(idle, elem_id="status", min_height=70)
        self.prompt = gr.File(label="What the clips start with", visible=False, elem_id="prompt")
        with gr.Row(equal_height=False):
            self.views = [_clip_view(index) for index in range(MAX_CLIPS)]
        self.earlier = gr.HTML(elem_id="earlier")
        self.clips = gr.State([])  # a visitor's own, the newest last

    def components(self) -> list[Any]:
        views = [part for view in self.views for part in view]
        return [self.status, self.prompt, self.earlier, self.clips, *views]

    def clear(self, earlier: Sequence[Clip]) -> dict[Any, Any]:
        """Return the updates that hide the last request's clips and list them as earlier ones."""
        hidden = {part: gr.update(visible=False) for part in (self.prompt, *(view[0] for view in self.views))}
        return {
            self.status: status_html("working", "Starting."),
            self.earlier: _earlier_html(earlier),
            **hidden,
        }

    def show(self, clips: Sequence[Clip], earlier: Sequence[Clip]) -> dict[Any, Any]:
        """Return the updates that show the last of a request's clips."""
        clip = clips[-1]
        column, audio, picture, command = self.views[len(clips) - 1]
        updates = {
            self.clips: [*earlier, *clips],
            column: gr.update(visible=True),
            audio: gr.update(value=str(clip.audio), label=clip.title, loop=clip.loops),
            picture: str(clip.picture),
            command: clip.command,
        }
        if clip.prompt is not None:
            updates[self.prompt] = gr.update(value=str(clip.prompt), visible=True)
        return updates


def build_page(service: ClipService, name: str) -> Page:
    """Lay out the page of the model called `name`."""
    title, delete_cache = f"{name} - magnet-train", (DELETE_EVERY, DELETE_OLDER)
    page = Page(analytics_enabled=False, title=title, delete_cache=delete_cache)
    with page:
        gr.HTML(_heading_html(service.magnet, name))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                fields = build_form(service.magnet)
                with gr.Row():
                    generate = gr.Button(
                        "Generate", variant="primary", scale=3, min_width=140, elem_id="generate"
                    )
                    cancel = gr.Button("Cancel", min_width=90, elem_id="cancel")
            with gr.Column(scale=3, min_width=320):
                results = _Results()

        def stop(request: gr.Request) -> tuple[str, Any]:
            service.cancel(str(request.session_hash))
            return status_html("stopped", "Cancelled."), gr.update(interactive=True)

        def leave(request: gr.Request) -> None:
            service.cancel(str(request.session_hash))

        text = fields["text"]
        generation = gr.on(
            [generate.click, *([text.submit] if isinstance(text, gr.Textbox) else [])],
            _generator(service, fields, generate, results),
            {*fields.values(), results.clips},
            [fields["seed"], generate, *results.components()],
            show_progress_on=results.status,
            trigger_mode="once",
            api_name="generate",
        )
        cancel.click(stop, None, [results.status, generate], **IMMEDIATE)  # the running request
        cancel.click(None, cancels=generation)  # a request that waits in the queue
        page.unload(leave)
    return page


def _generator(
    service: ClipService, fields: dict[str, Any], button: Any, results: _Results
) -> Callable[..., Iterator[dict[Any, Any]]]:
    """Return the function of the button Generate, which yields updates of components."""

    def generate(
        values: dict[Any, Any], request: gr.Request, progress: gr.Progress = PROGRESS
    ) -> Iterator[dict[Any, Any]]:
        earlier: list[Clip] = values[results.clips][-EARLIER_CLIPS:]
        clips: list[Clip] = []
        try:
            wanted = read_request(service.magnet, {name: values[field] for name, field in fields.items()})
            yield {
                fields["seed"]: wanted.seed,
                button: gr.update(interactive=False),
                **results.clear(earlier),
            }
            for clip in service.make(wanted, str(request.session_hash), progress):
                clips.append(clip)
                yield results.show(clips, earlier)
            unknown = service.magnet.unknown_words([wanted.text, wanted.negative])
            note = f" Words that the model does not know: {', '.join(unknown)}." if unknown else ""
            status = status_html("done", f"Made {len(clips)} clip{'s' if len(clips) > 1 else ''}.{note}")
        except Exception as error:
            status = _failure_html(error)
        yield {results.status: status, button: gr.update(interactive=True)}

    return generate


def _failure_html(error: Exception) -> str:
    """Return why no clips were made; the terminal gets the details of internal errors."""
    if isinstance(error, Cancelled):
        return status_html("stopped", "Cancelled.")
    if isinstance(error, UserError):
        return status_html("failed", as_sentence(str(error)))
    message = "The device ran out of memory; make a shorter clip, or try again later."
    if not is_full_memory(error):
        _log.error("the page could not make a clip", exc_info=error)
        kind = type(error).__name__
        message = f"Internal error ({kind}); the terminal that runs magnet-train demo shows it."
    return status_html("failed", message)


def status_html(state: str, message: str) -> str:
    """Write a status line, which screen readers announce."""
    role = "alert" if state == "failed" else "status"
    return f"<div class='state {state}' role='{role}'><p>{html.escape(message)}</p></div>"


def _heading_html(magnet: Magnet, name: str) -> str:
    codec = magnet.codec
    facts = [
        f"MAGNeT with {count_parameters(magnet.lm):,} parameters",
        f"clips of up to {magnet.segment_duration:g} s",
        f"{codec.sample_rate / 1000:g} kHz {'mono' if codec.channels == 1 else 'stereo'}",
        f"{codec.info.codebooks} at {codec.frame_rate:g} frames/s",
        f"on {magnet.device}",
    ]
    if magnet.licence != UNSPECIFIED:
        facts.append(f"licence {magnet.licence}")
    lines = [" · ".join(facts), *filter(None, [note_on(magnet.licence)])]
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return f"<header class='about'><h1>{html.escape(name)}</h1>{paragraphs}</header>"


def _clip_view(index: int) -> tuple[Any, Any, Any, Any]:
    """Lay out the view of one clip, hidden until there is one: column, audio, picture, command."""
    with gr.Column(visible=False, min_width=300) as column:
        audio = gr.Audio(interactive=False, buttons=["download"], elem_id=f"audio_{index}")
        picture = gr.Image(
            show_label=False,
            interactive=False,
            buttons=[],
            container=False,
            alt_text="spectrogram",
            elem_id=f"picture_{index}",
        )
        command = gr.Code(
            label="Command for this clip",
            language="shell",
            interactive=False,
            wrap_lines=True,
            show_line_numbers=False,
            buttons=["copy"],
            elem_id=f"command_{index}",
        )
    return column, audio, picture, command


def _earlier_html(clips: Sequence[Clip]) -> str:
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


def theme() -> gr.themes.Base:
    """Return a theme with the system's fonts: the default theme fetches its own from another host."""
    colours = gr.themes.Default(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    # The theme's own grey is too light on white to read easily.
    return colours.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")
