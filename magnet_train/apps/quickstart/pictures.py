"""Draw what a quickstart run did: losses, spectrograms, accuracies.

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
        metrics: The metrics.csv that `fit` wrote.
        card: Entries in a codebook; the loss of a guess among them is drawn as a line.
        path: Picture to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6))
        axes = figure.subplots()
        training = read_metrics(metrics, "train/loss_codebook_")
        for codebook, (steps, losses) in read_metrics(metrics, "val/loss_codebook_").items():
            colour = CODEBOOK_COLOURS[int(codebook) % len(CODEBOOK_COLOURS)]
            if codebook in training:
                axes.plot(
                    training[codebook][0], _smoothed(training[codebook][1]), color=colour, lw=0.9, alpha=0.45
                )
            axes.plot(steps, losses, color=colour, lw=2.2, marker="o", ms=4, label=f"codebook {codebook}")
        axes.axhline(math.log(card), color=GREY, ls=":", lw=1)
        guess = (0.99, math.log(card))
        style: dict[str, Any] = {
            "xytext": (0, 3),
            "textcoords": "offset points",
            "ha": "right",
            "color": GREY,
            "fontsize": 9,
        }
        axes.annotate(f"a guess among {card}", guess, xycoords=("axes fraction", "data"), **style)
        axes.set(xlabel="step", ylabel="loss (nats per masked token)", xlim=(0, None), ylim=(0, None))
        axes.set_title("Loss by codebook: validation (thick), training (thin)")
        axes.legend(frameon=False, ncols=4, loc="lower center")
        figure.savefig(path)


def draw_accuracy(report: Report, path: Path) -> None:
    """Draw the accuracy of each attribute beside chance, clips without caption, and the codec's ceiling."""
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
            drawn = axes.bar(
                x, [scores[name] for name in ATTRIBUTES], width * 0.92, color=colour, label=label
            )
            axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=-11, color=ink)
        for index, name in enumerate(ATTRIBUTES):
            ends = (index - 2.1 * width, index + 2.1 * width)
            label = "through the codec: the ceiling" if index == 0 else "_"  # named once in the legend
            axes.plot(ends, [report.ceiling[name]] * 2, color="#c0392b", lw=1.4, ls="--", label=label)
        axes.set_xticks(range(len(ATTRIBUTES)), ATTRIBUTES, fontsize=11)
        axes.set(ylim=(0, 1.1), ylabel="part of clips that obey")
        axes.set_title(f"What the oracle hears ({report.n} generated clips, {report.minutes:.1f} minutes)")
        figure.legend(frameon=False, ncols=5, loc="outside lower center", fontsize=9, columnspacing=1.2)
        figure.savefig(path)


def draw_spectrograms(rows: Sequence[tuple[Caption, Floats, Floats, Floats]], path: Path) -> None:
    """Draw one row per caption: a clip that obeys it, the same through the codec, and a generated one.

    Args:
        rows: Caption, clip, clip through the codec, generated clip.
        path: Picture to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.0 * len(rows) + 0.6))
        grid = figure.subplots(len(rows), 3, sharex=True, sharey=True, squeeze=False)
        for cells, (caption, *clips) in zip(grid, rows, strict=True):
            for cell, clip in zip(cells, clips, strict=True):
                _spectrogram(cell, clip)
            cells[0].set_title("\n".join(textwrap.wrap(f"“{caption.text}”", 44)), fontsize=10)
            cells[0].set_ylabel("kHz")
        for cell, name in zip(grid[0], ("clip", "through the codec", "generated"), strict=True):
            cell.annotate(name, (1, 1), xycoords="axes fraction", xytext=(-4, -6), textcoords="offset points",
                          ha="right", va="top", color="white", fontsize=10, weight="bold")  # fmt: skip
        for cell in grid[-1]:
            cell.set_xlabel("seconds")
        figure.savefig(path)


def _spectrogram(axes: Any, audio: Floats) -> None:
    """Log power over time and frequency, 70 dB deep."""
    window, hop = 256, 64
    padded = np.pad(audio, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    level = 20 * np.log10(np.abs(np.fft.rfft(frames)) * 4 / window + 1e-6)
    extent = (0, len(audio) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000)
    axes.imshow(level.T, origin="lower", aspect="auto", extent=extent, vmin=-75, vmax=-5, cmap="magma")


def _smoothed(values: Sequence[float], decay: float = 0.9) -> list[float]:
    """Running mean that forgets, corrected for its start."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        result.append(mean / weight)
    return result
