"""How much audio, how many steps, how large a model? Measured on the quickstart's band.

    python benchmarks/scaling.py --work runs/scaling

One run is the base: 53 minutes of audio, 2,000 steps, dim 128. Each other run changes one of the three. Every run trains
with the commands that a user would type, then generates test captions for the oracle to hear. Finished runs are not
repeated, so an interrupted benchmark can be continued.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.progress import track

from harness.quickstart_world import RESULTS, command, half_width, hardware, option_words, write_json
from magnet_train import Magnet
from magnet_train.apps.quickstart.band.captions import Caption
from magnet_train.apps.quickstart.band.oracle import accuracy, chance, read_clips
from magnet_train.apps.quickstart.band.world import BandWorld
from magnet_train.apps.quickstart.report import read_metrics

CONFIGS = ("base", "quickstart", "band", "trainer/cpu")
SEEN, UNSEEN, VALIDATION = 120, 96, 120  # clips
BATCH = 40  # clips generated at a time
CLIPS_PER_MINUTE = 60 / 3.2
PLOT = Path(__file__).parents[1] / "docs" / "pictures" / "scaling.png"

Scores = dict[str, float]


@dataclass(frozen=True)
class Variant:
    """What a run has."""

    clips: int = 1000  # to train on
    steps: int = 2000
    dim: int = 128
    layers: int = 4

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"clips{self.clips}-steps{self.steps}-dim{self.dim}x{self.layers}"


BASE = Variant()
QUESTIONS: dict[str, tuple[Variant, ...]] = {
    "minutes of audio": tuple(replace(BASE, clips=clips) for clips in (94, 281, 1000, 2812)),
    "steps": tuple(replace(BASE, steps=steps) for steps in (500, 1000, 2000, 4000)),
    "size": tuple(replace(BASE, dim=dim) for dim in (64, 128, 256)),
}


def make_shards(work: Path, split: str, clips: int) -> Path:
    """Write and tokenize the first clips of a split, unless an earlier run has."""
    audio, shards = work / "audio" / f"{split}-{clips}", work / "shards" / f"{split}-{clips}"
    if not (shards / "manifest.json").exists():
        BandWorld().write(audio, clips, split)
        command("tokenize", "--audio", str(audio), "--out", str(shards), "--codec", "band")
    return shards


def run_one(work: Path, variant: Variant, seed: int) -> dict[str, Any]:
    """Train, generate and score; keep the record beside the checkpoint."""
    folder = work / f"{variant.name}-seed{seed}"
    record = folder / "measures.json"
    if not record.exists():
        options = {
            "run": folder,
            "seed_everything": seed,
            "data.seed": seed,
            "data.shards": make_shards(work, "train", variant.clips),
            "data.val_shards": make_shards(work, "validation", VALIDATION),
            "trainer.max_steps": variant.steps,
            "trainer.val_check_interval": min(500, variant.steps),
            "trainer.enable_progress_bar": "false",
            "model.lm.dim": variant.dim,
            "model.lm.num_layers": variant.layers,
        }
        started = time.monotonic()
        configs = [word for config in CONFIGS for word in ("-c", f"configs/{config}.yaml")]
        command("fit", *configs, *option_words(options))
        minutes = (time.monotonic() - started) / 60
        measured = losses(folder) | generation_scores(folder / "last.ckpt", seed)
        run = {**asdict(variant), "seed": seed, "fit_minutes": round(minutes, 2), **measured}
        record.write_text(json.dumps(run), encoding="utf-8")
    return dict(json.loads(record.read_text(encoding="utf-8")))


def losses(folder: Path) -> dict[str, Any]:
    """Return the last validation losses by codebook, and the lowest mean with its step."""
    curves = read_metrics(folder / "metrics.csv", "val/loss_codebook_").values()
    (steps, means) = read_metrics(folder / "metrics.csv", "val/loss")[""]
    lowest = min(range(len(means)), key=means.__getitem__)
    return {
        "val_loss_per_codebook": [round(values[-1], 4) for _, values in curves],
        "lowest_val_loss": round(means[lowest], 4),
        "lowest_at_step": steps[lowest] + 1,
    }


def generation_scores(checkpoint: Path, seed: int) -> dict[str, Scores]:
    """Generate test captions, and return how often each attribute, and all of a clip, is right; and chance."""
    magnet = Magnet.from_pretrained(checkpoint)
    measured = {}
    for kind, count in (("seen", SEEN), ("unseen", UNSEEN)):
        captions = BandWorld().captions(count, "test", unseen=kind == "unseen")
        heard = read_clips(generate(magnet, captions, seed))
        right = [caption.score == score for caption, score in zip(captions, heard, strict=True)]
        measured[kind] = _rounded(accuracy(captions, heard) | {"whole clip": mean(right)})
        if kind == "seen":
            measured["chance"] = _rounded(chance(captions, heard))
    return measured


@torch.inference_mode()
def generate(magnet: Magnet, captions: Sequence[Caption], seed: int, **options: Any) -> list[Any]:
    """Return a clip for each caption, float [samples]; `options` are those of `Magnet.generate`."""
    clips: list[Any] = []
    for first in range(0, len(captions), BATCH):
        texts = [caption.text for caption in captions[first : first + BATCH]]
        clips += list(magnet.generate(texts, seed=seed, first_index=first, **options)[:, 0].numpy())
    return clips


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return for each question and variant the mean over seeds of what is right, with its 95 % interval."""
    summary: dict[str, list[dict[str, Any]]] = {}
    for question, variants in QUESTIONS.items():
        for variant in variants:
            same = [run for run in runs if all(run[key] == value for key, value in asdict(variant).items())]
            if same:
                row: dict[str, Any] = {"minutes": round(variant.clips / CLIPS_PER_MINUTE), **asdict(variant)}
                row["seeds"] = len(same)
                for kind in ("seen", "unseen"):
                    values = [run[kind]["whole clip"] for run in same]
                    row[kind] = {"whole clip": mean(values), "interval": half_width(values)}
                row["lowest_val_loss"] = mean(run["lowest_val_loss"] for run in same)
                row["fit_minutes"] = mean(run["fit_minutes"] for run in same)
                summary.setdefault(question, []).append(row)
    return summary


def draw(summary: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the share of whole clips that are right over what each question varies."""
    from matplotlib.figure import Figure

    axis = {"minutes of audio": "minutes", "steps": "steps", "size": "dim"}
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for cell, (question, rows) in zip(
        figure.subplots(1, len(summary), squeeze=False)[0], summary.items(), strict=True
    ):
        for kind, colour in (("seen", "#1f618d"), ("unseen", "#ca6f1e")):
            values = [row[kind]["whole clip"] for row in rows]
            cell.plot(
                [row[axis[question]] for row in rows],
                values,
                "o-",
                color=colour,
                label=f"{kind} combinations",
            )
        cell.set(xscale="log", xlabel=question, ylim=(0, 1.05))
        ticks = [row[axis[question]] for row in rows]
        cell.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        cell.minorticks_off()
        cell.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("clips right in every attribute")
    figure.axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=130)


def _rounded(scores: Scores) -> Scores:
    return {name: round(value, 4) for name, value in scores.items()}


def main() -> None:
    """Make all runs, and rewrite the results after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"), help="folder of shards and runs")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6), help="seeds of each run")
    parser.add_argument("--results", type=Path, default=RESULTS / "scaling.json", help="JSON file to write")
    parser.add_argument("--plot", type=Path, default=PLOT, help="picture to draw")
    args = parser.parse_args()
    variants = list(dict.fromkeys(variant for variants in QUESTIONS.values() for variant in variants))
    runs: list[dict[str, Any]] = []
    for variant, seed in track([(v, seed) for seed in range(args.seeds) for v in variants], "scaling"):
        runs.append(run_one(args.work, variant, seed))
        write_json(args.results, {"hardware": hardware(), "summary": summarise(runs), "runs": runs})
    draw(summarise(runs), args.plot)
    print(f"wrote {args.results} and {args.plot}")


if __name__ == "__main__":
    main()
