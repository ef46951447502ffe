"""Say whether the quickstart learned: report.json, and one sentence."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from magnet_train.apps.quickstart.captions import ATTRIBUTES
from magnet_train.storage.atomic_io import atomic_write

Scores = dict[str, float]  # by attribute, 0..1

WANTED = {"pitch": 0.95, "timbre": 0.95, "rhythm": 0.90}  # of what can be heard through the codec
WANTED_UNSEEN = 0.85
LUCK = 0.15  # how far above chance clips made without a caption may lie before something is leaking


@dataclass(frozen=True)
class Report:
    """What a quickstart run reached. Every score is a part of 1, by attribute.

    Args:
        minutes: From the first sound to the last score.
        n: Generated clips scored, of combinations shown in training but captions that were not.
        accuracy: Theirs.
        unseen: Of clips of combinations never shown.
        ceiling: Of real clips through the codec: the best that any model of its tokens can do.
        chance: Of the generated clips against the captions of others.
        unconditional: Of clips generated without a caption, against captions drawn for them.
        val_loss_per_codebook: Nats per masked token at the end, coarse to fine.
    """

    minutes: float
    n: int
    accuracy: Scores
    unseen: Scores
    ceiling: Scores
    chance: Scores
    unconditional: Scores
    val_loss_per_codebook: list[float]

    def write(self, path: Path) -> None:
        """Write the report as JSON, numbers to four digits."""
        with atomic_write(path) as file:
            file.write(json.dumps(_rounded(asdict(self)), indent=2).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def shortcomings(self) -> list[str]:
        """Return what is below the mark, in words; empty if the run learned all it should."""
        found = []
        for name in ATTRIBUTES:
            if self.accuracy[name] < WANTED[name] * self.ceiling[name]:
                found.append(f"{name} is right in {_percent(self.accuracy[name])} of clips")
            if self.unseen[name] < WANTED_UNSEEN * self.ceiling[name]:
                found.append(f"{name} of unseen combinations in {_percent(self.unseen[name])}")
            if self.unconditional[name] > self.chance[name] + LUCK:
                found.append(f"{name} is right in {_percent(self.unconditional[name])} without any caption")
        return found

    def verdict(self) -> str:
        """Say in one sentence whether it learned, with the numbers."""
        scores = ", ".join(f"{name} {_percent(self.accuracy[name])}" for name in ATTRIBUTES)
        luck = ", ".join(f"{name} {_percent(self.chance[name])}" for name in ATTRIBUTES)
        unseen = ", ".join(f"{name} {_percent(self.unseen[name])}" for name in ATTRIBUTES)
        facts = (
            f"of {self.n} clips generated from captions the oracle hears what was asked: {scores} "
            f"(by chance: {luck}; combinations never shown: {unseen}), after {self.minutes:.1f} minutes"
        )
        shortcomings = self.shortcomings()
        if not shortcomings:
            return f"It learned: {facts}."
        learned_nothing = all(self.accuracy[name] < self.chance[name] + LUCK for name in ATTRIBUTES)
        start = "It did not learn" if learned_nothing else "It learned in part"
        return f"{start}: {facts}; below the mark: {'; '.join(shortcomings)}."


def read_metrics(path: Path, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
    """Read columns of the metrics.csv that `fit` wrote.

    Args:
        path: The file.
        prefix: How the columns' names begin, "val/loss_codebook_" say.

    Returns:
        By the rest of the name: steps, and the values at these steps, blanks left out.
    """
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in (rows[0] if rows else {}) if name.startswith(prefix)]
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for name in sorted(names):
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        columns[name.removeprefix(prefix)] = ([step for step, _ in points], [value for _, value in points])
    return columns


def _percent(value: float) -> str:
    return f"{math.floor(100 * value)} %"  # never rounded up to a goal that was missed


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
