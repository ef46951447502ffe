"""The loss of each codebook over the steps, drawn as SVG in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from magnet_train.apps.html_page import Html, element, joined
from magnet_train.apps.quickstart.report import read_metrics

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 10, 52  # margins
COLOURS = 8  # --line0 to --line7 of the style sheet
TICKS = 6  # at most, on each axis


@dataclass(frozen=True)
class _Axes:
    """From values to places in the picture."""

    steps: float  # at the right end
    loss: float  # at the top

    def x(self, step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / self.steps, 1)

    def y(self, loss: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * loss / self.loss, 1)

    def line(self, steps: Sequence[int], losses: Iterable[float], look: str, colour: str) -> Html:
        points = " ".join(f"{self.x(step)},{self.y(loss)}" for step, loss in zip(steps, losses, strict=True))
        return element("polyline", points=points, class_=look, style=f"stroke: {colour}")

    def grid(self, card: int) -> Iterator[Html]:
        """Yield the ticks of both axes, and the loss of a uniform guess over the entries of a codebook."""
        for loss in _ticks(self.loss):
            yield _text(f"{loss:g}", LEFT - 8, self.y(loss) + 4, "end")
            yield _horizontal(self.y(loss), "grid")
        for step in _ticks(self.steps):
            yield _text(f"{step:,g}", self.x(step), HEIGHT - BOTTOM + 22, "middle")
        yield _text("step", WIDTH - RIGHT, HEIGHT - 4, "end")
        yield _horizontal(self.y(math.log(card)), "guess")
        yield _text(f"uniform guess over {card} entries", WIDTH - RIGHT, self.y(math.log(card)) - 6, "end")


def draw_curves(metrics: Path, card: int) -> Html:
    """Draw the columns `loss_codebook_` of a metrics.csv of `fit`: thin in training (smoothed), thick in validation.

    Args:
        metrics: The file.
        card: Entries of a codebook.
    """
    training = read_metrics(metrics, "train/loss_codebook_")
    validation = read_metrics(metrics, "val/loss_codebook_")
    columns = [*training.values(), *validation.values()]
    axes = _Axes(
        steps=max((step for steps, _ in columns for step in steps), default=1),
        loss=max([1.12 * math.log(card), *(loss for _, losses in columns for loss in losses)]),
    )
    drawn, legend = list(axes.grid(card)), list[Html]()
    for codebook, (at, losses) in validation.items():
        colour = f"var(--line{int(codebook) % COLOURS})"
        if codebook in training:
            trained_at, trained = training[codebook]
            drawn.append(axes.line(trained_at, _smoothed(trained), "thin", colour))
        drawn.append(axes.line(at, losses, "thick", colour))
        drawn += [_dot(axes.x(step), axes.y(loss), colour) for step, loss in zip(at, losses, strict=True)]
        swatch = element("span", class_="swatch", style=f"background: {colour}")
        last = "".join(f": {loss:.2f}" for loss in losses[-1:])
        legend.append(element("span", swatch, f"codebook {codebook}{last}"))
    picture = element(
        "svg",
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label="Loss of each codebook over the steps, in training and validation",
    )
    return element("div", joined(element("p", *legend, class_="legend"), picture), class_="chart")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average, corrected for its start."""
    decay, mean, weight, result = 0.9, 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        result.append(mean / weight)
    return result


def _ticks(limit: float) -> Iterator[float]:
    """Yield round numbers from 0 up to `limit`."""
    rough = limit / TICKS
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough)
    return takewhile(lambda tick: tick <= limit, (step * number for number in count()))


def _text(words: str, x: float, y: float, anchor: str) -> Html:
    return element("text", words, x=str(x), y=str(round(y, 1)), text_anchor=anchor)


def _horizontal(y: float, look: str) -> Html:
    return element("line", x1=str(LEFT), x2=str(WIDTH - RIGHT), y1=str(y), y2=str(y), class_=look)


def _dot(x: float, y: float, colour: str) -> Html:
    return element("circle", cx=str(x), cy=str(y), r="3.2", style=f"fill: {colour}")
