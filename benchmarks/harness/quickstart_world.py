"""Shared by the scripts that train on the tones and let its oracle read the clips."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import magnet_train
from harness.timing import cpu_name
from harness.tones.captions import ATTRIBUTES, Caption
from harness.tones.oracle import Readings, accuracy, expected_windows, read_clips
from harness.tones.world import ToneWorld
from magnet_train import Magnet
from magnet_train.cli.main import main as magnet_train_command
from magnet_train.errors import UserError

RESULTS = Path(__file__).parents[1] / "results"
CONFIGS = ("configs/base.yaml", "configs/quickstart.yaml", "configs/trainer/cpu.yaml")
TRAINING, VALIDATION = 1400, 160  # clips, as in harness/tones/presets.py
BATCH = 60  # clips generated at a time
# Two-sided 95 % points of Student's t by number of seeds.
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


def command(*words: str) -> None:
    """Run `magnet-train` with these words.

    Raises:
        UserError: The command failed.
    """
    if magnet_train_command(words) != 0:
        raise UserError(f"`magnet-train {words[0]}` failed; correct what its message above names.")


def tokenize(audio: Path, shards: Path) -> None:
    """Tokenize a folder with the codec of the tones."""
    command("tokenize", "--audio", str(audio), "--out", str(shards), "--codec", "quickstart")


def make_world_shards(work: Path) -> None:
    """Write the clips of the tones and tokenize them, unless an earlier run has."""
    for split, count in (("train", TRAINING), ("validation", VALIDATION)):
        shards = work / "shards" / split
        if not (shards / "manifest.json").exists():
            ToneWorld("default").write(work / "audio" / split, count, split)
            tokenize(work / "audio" / split, shards)


def config_words(*configs: str) -> list[str]:
    """Return the words that select the quickstart's configs, and further ones."""
    return [word for config in (*CONFIGS, *configs) for word in ("-c", config)]


def fit_words(work: Path, run: Path, seed: int, steps: int, **options: object) -> list[str]:
    """Return the words after `magnet-train fit` for a run on the shards of `work`, with further options by name."""
    common = {
        "run": run,
        "seed_everything": seed,
        "data.seed": seed,
        "data.shards": work / "shards" / "train",
        "data.val_shards": work / "shards" / "validation",
        "trainer.max_steps": steps,
        "trainer.enable_progress_bar": "false",
    }
    return config_words() + option_words(common | options)


def option_words(options: dict[str, object]) -> list[str]:
    """Return options by name as words of a command."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def generate_and_read(
    magnet: Magnet, captions: Sequence[Caption], seed: int = 0, batch: int = BATCH, **options: Any
) -> Readings:
    """Generate a clip for each caption, and let the oracle read it; the batch that begins at n has seed + n."""
    readings: Readings = []
    for first in range(0, len(captions), batch):
        texts = [caption.text for caption in captions[first : first + batch]]
        readings += read_clips(magnet.generate(texts, seed=seed + first, **options)[:, 0].numpy())
    return readings


def scores(captions: Sequence[Caption], readings: Readings) -> dict[str, float]:
    """Return how often each attribute, and the whole clip, is right, 0..1."""
    return accuracy(captions, readings) | {"whole": whole_clips(captions, readings)}


def whole_clips(captions: Sequence[Caption], readings: Readings) -> float:
    """Return the share of clips in which every attribute of the caption is right, 0..1."""
    right = 0
    for caption, reading in zip(captions, readings, strict=True):
        pairs = list(zip(expected_windows(caption.events, len(reading)), reading, strict=True))
        right += all(
            getattr(expected, attribute) in ("", getattr(found, attribute))
            for expected, found in pairs
            for attribute in ATTRIBUTES
        )
    return right / len(captions)


def half_width(gains: Sequence[float]) -> float | None:
    """Return the half width of the 95 % interval of a mean over seeds; None for one seed."""
    return T_95[len(gains)] * stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent clips."""
    z = 1.96
    centre, spread = (
        share + z * z / (2 * count),
        z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5,
    )
    scale = 1 + z * z / count
    return round(max(0.0, (centre - spread) / scale), 3), round(min(1.0, (centre + spread) / scale), 3)


def spread_over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation; None for one seed."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def hardware() -> dict[str, Any]:
    """Describe the machine and the versions that matter."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "magnet_train": magnet_train.__version__,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a record, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
