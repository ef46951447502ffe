"""The page of a codec: one HTML file with measures and players, which opens from the disk.

Shapes: audio float [samples].
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from magnet_train.apps.codec_training.measures import Measured
from magnet_train.audio import encode_wav

PLAYED_FILES, PLAYED_SECONDS = 6, 6
GOOD_FOR = (
    "It is good for models of this one kind of sound, for trying ideas and for work without a network. It is not a "
    "general codec: other sounds, voices and high frequencies come out coarse, and it is mono. For the best sound use "
    "facebook/encodec_32khz."
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top; }}
audio {{ width: 16rem; max-width: 100%; }} code {{ overflow-wrap: anywhere; }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
<p>{good_for}</p>
<h2>Files that it was not made from</h2>
{measures}
{players}
<h2>Make it again</h2>
<p><code>{command}</code></p>
<p>On the same machine with as many threads ({threads}), this gives the same bytes.</p>
</body></html>
"""


def rows_of(measured: Measured) -> list[tuple[str, str, str]]:
    """Return the measures in words: what, how much, and what chance gives."""
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
    rate = record["sample_rate"]
    minutes, steps = record["seconds_of_audio"] / 60, record["steps"]
    text = _PAGE.format(
        title="A codec of your own sound",
        summary=f"{rate} Hz mono, {record['frame_rate']} frames a second, {record['codebooks']} codebooks of "
        f"{record['card']} entries; made from {minutes:.1f} minutes of {record['files']} files in {steps:,} steps.",
        good_for=escape(GOOD_FOR),
        measures=_table(("", "median", "by chance"), rows_of(measured))
        if measured
        else "<p>None held sound.</p>",
        players="".join(
            _player(name, originals[name], decoded[name], rate) for name in list(decoded)[:PLAYED_FILES]
        ),
        command=escape(record["command"]),
        threads=record["threads"],
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be text


def _table(heads: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _player(name: str, original: Tensor, decoded: Tensor, rate: int) -> str:
    sounds = (("original", original), ("through the codec", decoded))
    players = "".join(
        f"<td>{words}<br><audio controls preload=none src='{_address(audio, rate)}'></audio></td>"
        for words, audio in sounds
    )
    return f"<h3>{escape(name)}</h3><table><tr>{players}</tr></table>"


def _address(audio: Tensor, rate: int) -> str:
    samples = audio[: PLAYED_SECONDS * rate].clamp(-1, 1).numpy()
    return "data:audio/wav;base64," + base64.b64encode(encode_wav(samples, rate)).decode()
