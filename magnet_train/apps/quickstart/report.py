"""The result of a quickstart run: report.json, a verdict in one sentence, and pictures.

Shapes: audio float [samples].
"""

from __future__ import annotations

import csv
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from magnet_train.apps.quickstart.presets import Caption, Preset
from magnet_train.apps.quickstart.synthetic import Scores
from magnet_train.storage.atomic_io import atomic_write

Floats = npt.NDArray[np.floating]

CHANCE_MARGIN = 0.15  # above chance that unconditional clips may score; more means that captions leak

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


@dataclass(frozen=True)
class Report:
    """Scores of a quickstart run, 0..1 by attribute."""

    minutes: float  # from the first synthesised clip to the last score
    n: int  # generated clips; their combinations occur in training, their captions do not
    accuracy: Scores  # of these clips
    unseen: Scores  # accuracy of clips of combinations never shown in training
    ceiling: Scores  # accuracy of real clips through the codec, the best that a model of its tokens can reach
    chance: Scores  # accuracy of the generated clips against shuffled captions
    unconditional: Scores  # accuracy of clips generated without a caption, against shuffled captions
    val_loss_per_codebook: list[float]  # final validation losses (nats per masked token), coarse to fine

    def write(self, path: Path) -> None:
        """Write the report as JSON, with scores rounded to four decimals."""
        record = json.loads(json.dumps(asdict(self)), parse_float=lambda digits: round(float(digits), 4))
        with atomic_write(path) as file:
            file.write(json.dumps(record, indent=2).encode() + b"\n")

    def shortcomings(self, preset: Preset) -> list[str]:
        """Return the goals of a preset that were missed, in words; empty if none was."""
        found = []
        for name, goal in preset.goals.items():
            if self.accuracy[name] < goal * self.ceiling[name]:
                found.append(f"{name} is right in {percent(self.accuracy[name])} of clips")
            if self.unseen[name] < preset.unseen_goal * self.ceiling[name]:
                found.append(f"{name} of unseen combinations in {percent(self.unseen[name])}")
            if self.unconditional[name] > self.chance[name] + CHANCE_MARGIN:
                found.append(f"{name} is right in {percent(self.unconditional[name])} without any caption")
        return found

    def verdict(self, preset: Preset) -> str:
        """Return one sentence on whether the run reached the goals of a preset, with the scores."""
        facts = (
            f"{self.n} clips generated from captions match them in {_listed(self.accuracy)} "
            f"(chance: {_listed(self.chance)}; combinations never shown: {_listed(self.unseen)}), "
            f"after {self.minutes:.1f} minutes"
        )
        shortcomings = self.shortcomings(preset)
        if not shortcomings:
            return f"It learned: {facts}."
        learned_nothing = all(
            self.accuracy[name] < self.chance[name] + CHANCE_MARGIN for name in self.accuracy
        )
        start = "It did not learn" if learned_nothing else "It learned in part"
        return f"{start}: {facts}; below the goal: {'; '.join(shortcomings)}."


def read_metrics(path: Path, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
    """Read the columns of a metrics.csv of `fit` whose names begin with `prefix`, such as "val/loss_codebook_".

    Returns:
        By the rest of the column's name: the steps that have a value, and these values.
    """
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in (rows[0] if rows else {}) if name.startswith(prefix)]
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for name in sorted(names):
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        columns[name.removeprefix(prefix)] = ([step for step, _ in points], [value for _, value in points])
    return columns


def _listed(scores: Scores) -> str:
    return ", ".join(f"{name} {percent(scores[name])}" for name in scores)


def percent(value: float) -> str:
    return f"{math.floor(100 * value)} %"  # never rounded up to a goal that was missed


def draw_losses(metrics: Path, card: int, path: Path) -> None:
    """Draw the loss of each codebook over the steps: thin in training (smoothed), thick in validation.

    A line marks the loss of a uniform guess over the `card` entries of a codebook.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6))
        axes = figure.subplots()
        training = read_metrics(metrics, "train/loss_codebook_")
        for codebook, (steps, losses) in read_metrics(metrics, "val/loss_codebook_").items():
            colour = CODEBOOK_COLOURS[int(codebook) % len(CODEBOOK_COLOURS)]
            if codebook in training:
                training_steps, training_losses = training[codebook]
                axes.plot(training_steps, smoothed(training_losses), color=colour, lw=0.9, alpha=0.45)
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
    width, names = 0.2, list(report.accuracy)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.4))
        axes = figure.subplots()
        for place, (label, scores, colour, ink) in enumerate(bars):
            x = [index + (place - 1.5) * width for index in range(len(names))]
            heights = [scores[name] for name in names]
            drawn = axes.bar(x, heights, width * 0.92, color=colour, label=label)
            axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=-11, color=ink)
        for index, name in enumerate(names):
            ends = (index - 2.1 * width, index + 2.1 * width)
            label = "ceiling (through the codec)" if index == 0 else "_"  # once in the legend
            axes.plot(ends, [report.ceiling[name]] * 2, color="#c0392b", lw=1.4, ls="--", label=label)
        axes.set_xticks(range(len(names)), names, fontsize=11)
        axes.set(ylim=(0, 1.1), ylabel="accuracy")
        axes.set_title(f"Accuracy by attribute ({report.n} generated clips, {report.minutes:.1f} minutes)")
        figure.legend(frameon=False, ncols=5, loc="outside lower center", fontsize=9, columnspacing=1.2)
        figure.savefig(path)


def draw_spectrograms(
    rows: Sequence[tuple[Caption, Floats, Floats, Floats]], sample_rate: int, path: Path
) -> None:
    """Draw a row of spectrograms for each caption: a real clip, the same through the codec, a generated one."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.0 * len(rows) + 0.6))
        grid = figure.subplots(len(rows), 3, sharex=True, sharey=True, squeeze=False)
        for cells, (caption, *clips) in zip(grid, rows, strict=True):
            for cell, clip in zip(cells, clips, strict=True):
                _draw_spectrogram(cell, clip, sample_rate)
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
    place = {"xytext": (x, y), "textcoords": "offset points", "ha": "right"}
    return {**place, "color": colour, "fontsize": size}


def _draw_spectrogram(axes: Any, audio: Floats, sample_rate: int) -> None:
    """Draw the level over time and frequency, with a range of 70 dB."""
    window = 256 * max(1, sample_rate // 8000)
    hop = window // 4
    padded = np.pad(audio, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    level = 20 * np.log10(np.abs(np.fft.rfft(frames)) * 4 / window + 1e-6)
    extent = (0, len(audio) / sample_rate, 0, sample_rate / 2000)
    axes.imshow(level.T, origin="lower", aspect="auto", extent=extent, vmin=-75, vmax=-5, cmap="magma")


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average, corrected for its start."""
    decay, mean, weight, result = 0.9, 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        result.append(mean / weight)
    return result
