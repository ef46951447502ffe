"""The page of a codec: one HTML file with measures and players, which opens from the disk.

Shapes: audio float [samples].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from magnet_train.apps import html_page
from magnet_train.apps.codec_training.measures import Measured
from magnet_train.apps.html_page import Html, element, joined, player, table
from magnet_train.cli.console import count

PLAYED_FILES, PLAYED_SECONDS = 6, 6
GOOD_FOR = (
    "It is good for models of this one kind of sound, for trying ideas and for work without a network. It is not a "
    "general codec: other sounds, voices and high frequencies come out coarse, and it is mono. For the best sound use "
    "facebook/encodec_32khz."
)


def rows_of(measured: Measured) -> list[tuple[str, str, str]]:
    """Return (measure, value, value by chance) in words."""
    used = ", ".join(map(str, measured.entries_used))
    return [
        ("waveform: SI-SDR", f"{measured.si_sdr:.1f} dB", ""),
        ("spectrum: log-mel distance", f"{measured.log_mel:.1f} dB", ""),
        ("rhythm: onset correlation", f"{measured.onset:.2f}", _chance(measured.onset_by_chance)),
        ("harmony: chroma correlation", f"{measured.chroma:.2f}", _chance(measured.chroma_by_chance)),
        (f"entries in use, by codebook, in {measured.frames:,} frames", used, ""),
    ]


def _chance(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def write_page(
    path: Path,
    record: Mapping[str, Any],
    measured: Measured | None,
    originals: Mapping[str, Tensor],
    decoded: Mapping[str, Tensor],
) -> None:
    """Write the page of a codec; `record` is that of training.json."""
    title, rate = "A codec of your own sound", record["sample_rate"]
    minutes, steps = record["seconds_of_audio"] / 60, record["steps"]
    summary = (
        f"{rate} Hz mono, {record['frame_rate']} frames a second, {record['codebooks']} codebooks of "
        f"{record['card']} entries; made from {minutes:.1f} minutes of {count(record['files'], 'file')} in "
        f"{count(steps, 'step')}."
    )
    measures = element("p", "No held-out file has sound.")
    if measured is not None:
        measures = table(("", "median", "by chance"), rows_of(measured))
    html_page.write_page(
        path,
        title,
        element("h1", title),
        element("p", summary),
        element("p", GOOD_FOR),
        element("h2", "Held-out files"),
        measures,
        *(_players(name, originals[name], decoded[name], rate) for name in list(decoded)[:PLAYED_FILES]),
        element("h2", "Make it again"),
        element("pre", record["command"]),
        element(
            "p", f"On the same machine with as many threads ({record['threads']}), this gives the same bytes."
        ),
    )


def _players(name: str, original: Tensor, decoded: Tensor, rate: int) -> Html:
    sounds = (("original", original), ("through the codec", decoded))
    figures = (
        element(
            "figure",
            element("figcaption", words),
            player(audio[: PLAYED_SECONDS * rate].numpy(), rate, f"{name}, {words}"),
        )
        for words, audio in sounds
    )
    return joined(element("h3", name), element("div", *figures, class_="sounds"))
