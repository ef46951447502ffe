"""The page of a quickstart: whether the model learned, what it makes, and what else it does.

One HTML file, which opens from the disk. Shapes: audio float [samples].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from magnet_train.apps import html_page
from magnet_train.apps.html_page import Audio, Html, element, joined, picture, player
from magnet_train.apps.quickstart.curves import draw_curves
from magnet_train.apps.quickstart.demonstrations import Demonstration, Sound
from magnet_train.apps.quickstart.report import Report, percent
from magnet_train.apps.quickstart.spectrogram import spectrogram

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
TITLE = "magnet-train quickstart"
INTRODUCTION = (
    "magnet-train synthesised captioned clips, turned them into tokens with a small codec, and trained a MAGNeT model on "
    "them from scratch, without a network. Below are clips that the model generated from captions outside its training "
    "set, and how often they match these captions, measured from the audio alone."
)
SCORES = (
    "The share of clips in which the attribute is measured as the caption says. Never shown: for combinations of values "
    "that training left out. Chance: against the captions of other clips. The line is the ceiling: real clips through "
    "the codec."
)
SOUNDS = (
    "The first captions of the test set, not selected: a real clip that matches the caption, the same clip through the "
    "codec, and what the model generated from the caption alone. In the pictures, time runs to the right and frequency "
    "upwards (mel scale to {limit:g} kHz); brighter is louder."
)
CURVES = (
    "Cross-entropy of masked tokens in nats, thick in validation, thin in training (smoothed). Codebook 0 is the coarsest; "
    "each further one refines the sound."
)
COMMANDS = "One command each, with the model that was just trained."


@dataclass(frozen=True)
class Example:
    """A caption and its three clips."""

    caption: str
    real: Audio
    decoded: Audio  # the real clip through the codec
    generated: Audio


def write_page(
    path: Path,
    report: Report,
    verdict: str,
    examples: Sequence[Example],
    demonstrations: Sequence[Demonstration],
    metrics: Path,
    card: int,
    sample_rate: int,
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        report: The scores; their attributes may be any.
        verdict: From `Report.verdict`.
        examples: Captions with their clips.
        demonstrations: What else the model does.
        metrics: metrics.csv of `fit`.
        card: Entries of a codebook.
        sample_rate: Of all clips, Hz.

    Raises:
        UserError: The file cannot be written.
    """
    heading, _, facts = verdict.partition(": ")
    html_page.write_page(
        path,
        f"{heading}: {TITLE}",
        element("h1", TITLE),
        element("p", INTRODUCTION),
        element(
            "section", element("h2", heading), element("p", facts.replace(" %", "\u00a0%")), class_="verdict"
        ),
        element("h2", "Does it follow the caption?"),
        element("p", SCORES, class_="soft"),
        element("div", *_accuracy(report), class_="attributes"),
        element("h2", "What it makes"),
        element("p", SOUNDS.format(limit=sample_rate / 2000), class_="soft"),
        *(_example(example, sample_rate) for example in examples),
        element("h2", "How it learned"),
        element("p", CURVES, class_="soft"),
        draw_curves(metrics, card),
        element("h2", "What else it does"),
        element("p", COMMANDS, class_="soft"),
        *(_demonstration(demonstration, sample_rate) for demonstration in demonstrations),
        style=STYLE,
    )


def _accuracy(report: Report) -> Iterator[Html]:
    """Yield bars for each attribute."""
    kinds = (
        ("generated", report.accuracy, "strong"),
        ("never shown", report.unseen, "second"),
        ("without a caption", report.unconditional, "third"),
        ("chance", report.chance, "fourth"),
    )
    for name, ceiling in report.ceiling.items():
        rows = []
        for label, scores, look in kinds:
            bar = element("i", class_=look, style=f"width: {_position(scores[name])}")
            line = element("b", style=f"left: {_position(ceiling)}")
            cells = (
                ("th", label),
                ("td", element("div", bar, line, class_="bar")),
                ("td", percent(scores[name])),
            )
            rows.append(element("tr", *(element(kind, cell) for kind, cell in cells)))
        heading = element("h3", name, element("span", f"ceiling {percent(ceiling)}", class_="soft"))
        yield element("section", heading, element("table", *rows))


def _example(example: Example, sample_rate: int) -> Html:
    sounds = (
        Sound("real", example.real),
        Sound("through the codec", example.decoded),
        Sound("generated", example.generated),
    )
    return joined(element("h3", f"“{example.caption}”"), _sounds(sounds, sample_rate, example.caption))


def _demonstration(shown: Demonstration, sample_rate: int) -> Html:
    return joined(
        element("h3", shown.title),
        element("p", shown.explanation),
        element("pre", shown.command),
        _sounds(shown.sounds, sample_rate, shown.title),
    )


def _sounds(sounds: Sequence[Sound], sample_rate: int, about: str) -> Html:
    """Return a spectrogram and a player for each sound."""
    figures = []
    for sound in sounds:
        name = f"{about}: {sound.label}"
        marks = (
            element("span", style=f"left: {_position(start)}; width: {_position(end - start)}")
            for start, end in sound.marked
        )
        drawing = picture(spectrogram(sound.audio, sample_rate), f"Spectrogram. {name}")
        figures.append(
            element(
                "figure",
                element("figcaption", sound.label),
                element("div", drawing, *marks, class_="spectrogram"),
                player(sound.audio, sample_rate, name, loop=sound.loop),
            )
        )
    return element("div", *figures, class_="sounds")


def _position(share: float) -> str:
    return f"{100 * share:.4g}%"
