"""Pictures of a quickstart run: losses, accuracies, spectrograms.

Shapes: audio float [samples] at 8 kHz.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from magnet_train.apps.quickstart.captions import ATTRIBUTES, Caption
from magnet_train.apps.quickstart.report import Report, read_metrics
from magnet_train.apps.quickstart.world import SAMPLE_RATE

Floats = npt.NDArray[np.floating]

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 130,
}
CODEBOOK_COLOURS = ("#1b4f72", "#2e86c1", "#ca6f1e", "#c0392b", "#7d3c98", "#117864", "#7e5109", "#616a6b")
GREY = "#8a8a8a"


def draw_losses(metrics: Path, card: int, path: Path) -> None:
    """Draw the loss of each codebook over the steps: thin in training (smoothed), thick in validation.

    Args:
        metrics: The metrics.csv of `fit`.
        card: Entries in a codebook; a line marks the loss of a uniform guess.
        path: Picture to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6))
        axes = figure.subplots()
        training = read_metrics(metrics, "train/loss_codebook_")
        for codebook, (steps, losses) in read_metrics(metrics, "val/loss_codebook_").items():
            colour = CODEBOOK_COLOURS[int(codebook) % len(CODEBOOK_COLOURS)]
            if codebook in training:
                training_steps, training_losses = training[codebook]
                axes.plot(training_steps, _smoothed(training_losses), color=colour, lw=0.9, alpha=0.45)
            axes.plot(steps, losses, color=colour, lw=2.2, marker="o", ms=4, label=f"codebook {codebook}")
        guess = math.log(card)
        axes.axhline(guess, color=GREY, ls=":", lw=1)
        label = f"uniform over {card}"
        axes.annotate(label, (0.99, guess), xycoords=("axes fraction", "data"), **_offset(0, 3, GREY, 9))
        axes.set(xlabel="step", ylabel="loss (nats per masked token)", xlim=(0, None), ylim=(0, None))
        axes.set_title("Loss by codebook: validation (thick), training (thin)")
        axes.legend(frameon=False, ncols=4, loc="lower center")
        figure.savefig(path)


def draw_accuracy(report: Report, path: Path) -> None:
    """Draw the accuracy of each attribute beside chance, unconditional clips, and the codec's ceiling."""
    bars = (
        ("chance", report.chance, "#d0d3d4", "#333333"),
        ("no caption", report.unconditional, "#a6acaf", "#222222"),
        ("generated", report.accuracy, "#1f618d", "white"),
        ("combinations never shown", report.unseen, "#5dade2", "white"),
    )
    width = 0.2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.4))
        axes = figure.subplots()
        for place, (label, scores, colour, ink) in enumerate(bars):
            x = [index + (place - 1.5) * width for index in range(len(ATTRIBUTES))]
            heights = [scores[name] for name in ATTRIBUTES]
            drawn = axes.bar(x, heights, width * 0.92, color=colour, label=label)
            axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=-11, color=ink)
        for index, name in enumerate(ATTRIBUTES):
            ends = (index - 2.1 * width, index + 2.1 * width)
            label = "ceiling (through the codec)" if index == 0 else "_"  # once in the legend
            axes.plot(ends, [report.ceiling[name]] * 2, color="#c0392b", lw=1.4, ls="--", label=label)
        axes.set_xticks(range(len(ATTRIBUTES)), ATTRIBUTES, fontsize=11)
        axes.set(ylim=(0, 1.1), ylabel="accuracy")
        axes.set_title(f"Accuracy by attribute ({report.n} generated clips, {report.minutes:.1f} minutes)")
        figure.legend(frameon=False, ncols=5, loc="outside lower center", fontsize=9, columnspacing=1.2)
        figure.savefig(path)


def draw_spectrograms(rows: Sequence[tuple[Caption, Floats, Floats, Floats]], path: Path) -> None:
    """Draw a row of spectrograms for each caption: a real clip, the same through the codec, a generated one.

    Args:
        rows: Caption, real clip, clip through the codec, generated clip.
        path: Picture to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.0 * len(rows) + 0.6))
        grid = figure.subplots(len(rows), 3, sharex=True, sharey=True, squeeze=False)
        for cells, (caption, *clips) in zip(grid, rows, strict=True):
            for cell, clip in zip(cells, clips, strict=True):
                _draw_spectrogram(cell, clip)
            cells[0].set_title("\n".join(textwrap.wrap(f"“{caption.text}”", 44)), fontsize=10)
            cells[0].set_ylabel("kHz")
        for cell, name in zip(grid[0], ("real", "through the codec", "generated"), strict=True):
            style = _offset(-4, -6, "white", 10)
            cell.annotate(name, (1, 1), xycoords="axes fraction", va="top", weight="bold", **style)
        for cell in grid[-1]:
            cell.set_xlabel("seconds")
        figure.savefig(path)


def _offset(x: float, y: float, colour: str, size: int) -> dict[str, Any]:
    """Return the options of a right-aligned annotation, moved by (x, y) points."""
    return {
        "xytext": (x, y),
        "textcoords": "offset points",
        "ha": "right",
        "color": colour,
        "fontsize": size,
    }


def _draw_spectrogram(axes: Any, audio: Floats) -> None:
    """Draw the level over time and frequency, with a range of 70 dB."""
    window, hop = 256, 64
    padded = np.pad(audio, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    level = 20 * np.log10(np.abs(np.fft.rfft(frames)) * 4 / window + 1e-6)
    extent = (0, len(audio) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000)
    axes.imshow(level.T, origin="lower", aspect="auto", extent=extent, vmin=-75, vmax=-5, cmap="magma")


def _smoothed(values: Sequence[float], decay: float = 0.9) -> list[float]:
    """Return the exponential moving average, corrected for its start."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        result.append(mean / weight)
    return result
