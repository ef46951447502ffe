"""The result of a quickstart run: report.json, and a verdict in one sentence."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from magnet_train.apps.quickstart.captions import ATTRIBUTES
from magnet_train.storage.atomic_io import atomic_write

Scores = dict[str, float]  # by attribute, 0..1

GOALS = {"pitch": 0.95, "timbre": 0.95, "rhythm": 0.90}  # least accuracy, relative to the ceiling
UNSEEN_GOAL = 0.85
CHANCE_MARGIN = 0.15  # above chance that unconditional clips may score; more means that captions leak


@dataclass(frozen=True)
class Report:
    """Scores of a quickstart run, 0..1 by attribute.

    Args:
        minutes: Duration from the first synthesised clip to the last score.
        n: Number of generated clips; their combinations occur in training, their captions do not.
        accuracy: Accuracy of these clips.
        unseen: Accuracy of clips of combinations never shown in training.
        ceiling: Accuracy of real clips through the codec, the best that a model of its tokens can reach.
        chance: Accuracy of the generated clips against shuffled captions.
        unconditional: Accuracy of clips generated without a caption, against shuffled captions.
        val_loss_per_codebook: Final validation losses (nats per masked token), coarse to fine.
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
        """Write the report as JSON, with scores rounded to four decimals."""
        record = json.loads(json.dumps(asdict(self)), parse_float=lambda digits: round(float(digits), 4))
        with atomic_write(path) as file:
            file.write(json.dumps(record, indent=2).encode() + b"\n")

    def shortcomings(self) -> list[str]:
        """Return the goals that were missed, in words; empty if none was."""
        found = []
        for name in ATTRIBUTES:
            if self.accuracy[name] < GOALS[name] * self.ceiling[name]:
                found.append(f"{name} is right in {_percent(self.accuracy[name])} of clips")
            if self.unseen[name] < UNSEEN_GOAL * self.ceiling[name]:
                found.append(f"{name} of unseen combinations in {_percent(self.unseen[name])}")
            if self.unconditional[name] > self.chance[name] + CHANCE_MARGIN:
                found.append(f"{name} is right in {_percent(self.unconditional[name])} without any caption")
        return found

    def verdict(self) -> str:
        """Return one sentence on whether the run learned, with the scores."""
        facts = (
            f"{self.n} clips generated from captions match them in {_listed(self.accuracy)} "
            f"(chance: {_listed(self.chance)}; combinations never shown: {_listed(self.unseen)}), "
            f"after {self.minutes:.1f} minutes"
        )
        shortcomings = self.shortcomings()
        if not shortcomings:
            return f"It learned: {facts}."
        learned_nothing = all(self.accuracy[name] < self.chance[name] + CHANCE_MARGIN for name in ATTRIBUTES)
        start = "It did not learn" if learned_nothing else "It learned in part"
        return f"{start}: {facts}; below the goal: {'; '.join(shortcomings)}."


def read_metrics(path: Path, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
    """Read columns of a metrics.csv of `fit`.

    Args:
        path: The file.
        prefix: Prefix of the columns, such as "val/loss_codebook_".

    Returns:
        By column name without the prefix: the steps that have a value, and these values.
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
    return ", ".join(f"{name} {_percent(scores[name])}" for name in ATTRIBUTES)


def _percent(value: float) -> str:
    return f"{math.floor(100 * value)} %"  # never rounded up to a goal that was missed
