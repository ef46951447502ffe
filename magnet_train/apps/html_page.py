"""HTML pages of one file, with pictures and players inside, which open from the disk and load nothing else.

Shapes: audio float [samples], full scale -1..1.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from magnet_train.audio import encode_wav
from magnet_train.storage.atomic_io import atomic_write

Audio = npt.NDArray[np.floating]

STYLE = (Path(__file__).parent / "html_page.css").read_text(encoding="utf-8")
# What the browser may load: what is inside the page. No script runs, whatever a caption or the name of a file holds.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
VOID = {"br", "img", "link", "meta"}  # elements without an end tag


class Html(str):
    """Markup. Any other text is escaped when it becomes part of an element."""

    __slots__ = ()


def element(name: str, /, *content: str, **attributes: str | bool) -> Html:
    """Return an element; False leaves an attribute out, and `class_` and `aria_label` stand for class and aria-label."""
    words = [name]
    for key, value in attributes.items():
        if value is not False:
            attribute = key.rstrip("_").replace("_", "-")
            words.append(attribute if value is True else f'{attribute}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in VOID else f"{start}{joined(*content)}</{name}>")


def joined(*content: str) -> Html:
    """Return elements and text one after the other, the text escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in content))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Return a table with a line of headings."""
    lines = [
        [element("th", head) for head in heads],
        *([element("td", cell) for cell in row] for row in rows),
    ]
    return element("div", element("table", *(element("tr", *line) for line in lines)), class_="scrolls")


def picture(jpeg: bytes, description: str) -> Html:
    """Return a picture; `description` is its alternative text."""
    return element("img", src=_address("image/jpeg", jpeg), alt=description)


def player(audio: Audio, sample_rate: int, name: str, *, loop: bool = False) -> Html:
    """Return an audio player, which repeats with `loop`; `name` is its label for screen readers.

    The sound is a 16-bit WAV: Chromium fails to seek in FLAC, and not every browser plays Ogg. Samples beyond full
    scale are clipped.
    """
    address = _address("audio/wav", encode_wav(np.clip(audio, -1, 1), sample_rate))
    return element("audio", controls=True, preload="metadata", loop=loop, aria_label=name, src=address)


def write_page(path: Path, title: str, *content: str, style: str = "") -> None:
    """Write a page; `style` is CSS beside that of html_page.css.

    Raises:
        UserError: The disk is full or the folder cannot be written to.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE + style)),
    )
    page = element("html", head, element("body", element("main", *content)), lang="en")
    with atomic_write(path) as file:
        # Names of files need not be valid text.
        file.write(f"<!doctype html>\n{page}\n".encode(errors="backslashreplace"))


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
