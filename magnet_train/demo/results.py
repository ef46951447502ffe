"""What a visitor gets: how far a job is, and the places of the clips."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import gradio as gr

from magnet_train.demo.job import Clip, Update
from magnet_train.demo.order import MOST_CLIPS


def lay_out_place(index: int) -> tuple[Any, Any, Any, Any]:
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


def changes_of(update: Update, told: Update | None) -> list[Any]:
    """Return what changes on the page: both buttons, status, kept part and the places of the clips.

    A clip that is there is not sent again: somebody may be listening to it.
    """
    busy = update.state in ("waiting", "working")
    changes: list[Any] = [gr.update(interactive=not busy), gr.update(interactive=busy), status_of(update)]
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


def status_of(update: Update | None) -> str:
    """Write how far it is in HTML, for eyes and for screen readers."""
    if update is None:
        return "<div class='state' role='status'><p>What you make appears here.</p></div>"
    role = "alert" if update.state == "failed" else "status"
    bar = f"<progress value='{update.share:.3f}' max='1'></progress>" if update.state == "working" else ""
    return f"<div class='state {update.state}' role='{role}'><p>{html.escape(update.message)}</p>{bar}</div>"
