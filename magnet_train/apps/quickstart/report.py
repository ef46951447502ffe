"""The result of a quickstart run: report.json, and a verdict in one sentence."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from magnet_train.apps.quickstart.presets import Preset
from magnet_train.apps.quickstart.synthetic import Scores
from magnet_train.storage.atomic_io import atomic_write

CHANCE_MARGIN = 0.15  # above chance that unconditional clips may score; more means that captions leak


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
