"""How much audio, how many steps, how large a model? Measured on the quickstart's drums and bass.

    python benchmarks/scaling.py --work runs/scaling

One run is the base: 53 minutes of audio, 2,000 steps, dim 128. Each other run changes one of the three. Clips that begin
with a bar are compared with random crops of longer ones, each with both kinds of positions, at 1,000 steps, where the
base is not yet always right, and the crops with four times as many steps. Every run trains with the commands that a user
would type, then generates test captions for the oracle to hear. Finished runs are not repeated, so an interrupted
benchmark can be continued; runs that the results file has of other variants and seeds stay in it.
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

from harness import any_phase
from harness.quickstart_world import RESULTS, command, hardware, option_words, wilson, write_json
from magnet_train import Magnet
from magnet_train.apps.quickstart.drums_and_bass.captions import Caption, Score
from magnet_train.apps.quickstart.drums_and_bass.oracle import accuracy, chance, read_clips
from magnet_train.apps.quickstart.drums_and_bass.world import DrumsAndBassWorld
from magnet_train.apps.quickstart.report import read_metrics
from magnet_train.models.positions import POSITIONS

CONFIGS = ("base", "quickstart", "drums_and_bass", "trainer/cpu")
SEEN, UNSEEN, VALIDATION = 120, 96, 120  # clips
BATCH = 40  # clips generated at a time
AXES = {  # what the plot shows of each question: a key of its rows, and a label
    "minutes of audio": ("minutes", "minutes of audio (2,000 steps)"),
    "steps": ("steps", "steps (53 minutes)"),
    "size": ("dim", "dim (53 minutes, 2,000 steps)"),
}
CLIPS_PER_MINUTE = 60 / 3.2
PLOT = Path(__file__).parents[1] / "docs" / "pictures" / "scaling.png"

Scores = dict[str, float]
Run = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """What a run has."""

    clips: int = 1000  # to train on
    steps: int = 2000
    dim: int = 128
    layers: int = 4
    crops: bool = False  # random ones of clips of twice the length, half as many
    positions: str = "sinusoidal"

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        name = f"clips{self.clips}-steps{self.steps}-dim{self.dim}x{self.layers}"
        return name + ("-crops" if self.crops else "") + ("-rotary" if self.positions == "rotary" else "")

    def made(self, run: Run) -> bool:
        """Whether a run is of this variant; the first records lack `crops` and `positions`."""
        return all(run.get(key, getattr(BASE, key)) == value for key, value in asdict(self).items())


BASE = Variant()
SHORT = Variant(steps=1000)
QUESTIONS: dict[str, tuple[Variant, ...]] = {
    "minutes of audio": tuple(replace(BASE, clips=clips) for clips in (94, 281, 1000, 2812)),
    "steps": tuple(replace(BASE, steps=steps) for steps in (500, 1000, 2000, 4000)),
    "size": tuple(replace(BASE, dim=dim) for dim in (64, 128, 256)),
    "crops": (
        *(replace(SHORT, crops=crops, positions=kind) for kind in POSITIONS for crops in (False, True)),
        *(replace(BASE, steps=4000, crops=True, positions=kind) for kind in POSITIONS),
    ),
}


def make_shards(
    work: Path, split: str, clips: int, world: DrumsAndBassWorld | None = None, kind: str = ""
) -> Path:
    """Write and tokenize the first clips of a split, unless an earlier run has."""
    audio, shards = (work / folder / f"{split}-{clips}{kind}" for folder in ("audio", "shards"))
    if not (shards / "manifest.json").exists():
        (world or DrumsAndBassWorld()).write(audio, clips, split)
        command("tokenize", "--audio", str(audio), "--out", str(shards), "--codec", "drums_and_bass")
    return shards


def training_shards(work: Path, variant: Variant) -> Path:
    """Return the shards that a variant learns from."""
    if variant.crops:
        return make_shards(work, "train", variant.clips // 2, any_phase.LongBandWorld(), "-long")
    return make_shards(work, "train", variant.clips)


def run_one(work: Path, variant: Variant, seed: int) -> Run:
    """Train, generate and score; keep the record beside the checkpoint."""
    folder = work / f"{variant.name}-seed{seed}"
    record = folder / "measures.json"
    if not record.exists():
        options = {
            "run": folder,
            "seed_everything": seed,
            "data.seed": seed,
            "data.shards": training_shards(work, variant),
            "data.val_shards": make_shards(work, "validation", VALIDATION),
            "trainer.max_steps": variant.steps,
            "trainer.val_check_interval": min(500, variant.steps),
            "trainer.enable_progress_bar": "false",
            "model.lm.dim": variant.dim,
            "model.lm.num_layers": variant.layers,
            "model.lm.positions": variant.positions,
        }
        started = time.monotonic()
        configs = [word for config in CONFIGS for word in ("-c", f"configs/{config}.yaml")]
        command("fit", *configs, *option_words(options))
        minutes = (time.monotonic() - started) / 60
        measured = losses(folder) | generation_scores(folder / "last.ckpt", seed)
        run = {**asdict(variant), "seed": seed, "hardware": hardware(), "fit_minutes": round(minutes, 2)}
        run |= measured
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
        captions = DrumsAndBassWorld().captions(count, "test", unseen=kind == "unseen")
        clips = generate(magnet, captions, seed)
        heard = read_clips(clips)
        measured[kind] = _rounded(accuracy(captions, heard) | {"whole clip": whole_clips(captions, heard)})
        measured[kind]["whole clip, any phase"] = whole_clips(captions, any_phase.read_clips(clips))
        if kind == "seen":
            measured["chance"] = _rounded(chance(captions, heard))
    return measured


def whole_clips(captions: Sequence[Caption], heard: Sequence[Score]) -> float:
    """Return the share of clips that play all of their caption."""
    right = [caption.score == score for caption, score in zip(captions, heard, strict=True)]
    return round(mean(right), 4)


@torch.inference_mode()
def generate(magnet: Magnet, captions: Sequence[Caption], seed: int, **options: Any) -> list[Any]:
    """Return a clip for each caption, float [samples]; `options` are those of `Magnet.generate`."""
    clips: list[Any] = []
    for first in range(0, len(captions), BATCH):
        texts = [caption.text for caption in captions[first : first + BATCH]]
        clips += list(magnet.generate(texts, seed=seed, first_index=first, **options)[:, 0].numpy())
    return clips


def keep(results: Path, run: Run) -> list[Run]:
    """Return the runs of a results file, with this one in place of an earlier one of the same variant and seed."""
    earlier = json.loads(results.read_text(encoding="utf-8"))["runs"] if results.exists() else []
    variant = Variant(**{key: run.get(key, value) for key, value in asdict(BASE).items()})
    return [old for old in earlier if not (variant.made(old) and old["seed"] == run["seed"])] + [run]


def summarise(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return for each question and variant what is right: the mean over seeds and its 95 % interval over captions."""
    summary: dict[str, list[Run]] = {}
    for question, variants in QUESTIONS.items():
        measure = "whole clip, any phase" if question == "crops" else "whole clip"
        for variant in variants:
            same = [run for run in runs if variant.made(run) and measure in run["seen"]]
            if same:
                row: Run = {"minutes": round(variant.clips / CLIPS_PER_MINUTE), **asdict(variant)}
                row["seeds"] = len(same)
                for kind, count in (("seen", SEEN), ("unseen", UNSEEN)):
                    values = [run[kind][measure] for run in same]
                    row[kind] = {measure: mean(values), "interval": wilson(mean(values), count * len(values))}
                    row[kind]["by seed"] = values
                row["lowest_val_loss"] = mean(run["lowest_val_loss"] for run in same)
                summary.setdefault(question, []).append(row)
    return summary


def draw(summary: dict[str, list[Run]], path: Path) -> None:
    """Draw the share of whole clips that are right, with its interval, over what each question varies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    cells = figure.subplots(1, len(AXES), squeeze=False, sharey=True)[0]
    for cell, (question, (axis, label)) in zip(cells, AXES.items(), strict=True):
        rows = summary.get(question, [])
        ticks = [row[axis] for row in rows]
        for kind, colour, shift in (("seen", "#1f618d", 0.98), ("unseen", "#ca6f1e", 1.02)):
            shares = [row[kind]["whole clip"] for row in rows]
            ends = [row[kind]["interval"] for row in rows]
            errors = [
                [max(0.0, share - low) for share, (low, _) in zip(shares, ends, strict=True)],
                [max(0.0, high - share) for share, (_, high) in zip(shares, ends, strict=True)],
            ]
            places = [tick * shift for tick in ticks]
            cell.errorbar(
                places, shares, errors, fmt="o-", capsize=3, color=colour, label=f"{kind} combinations"
            )
        cell.set(xscale="log", xlabel=label, ylim=(0, 1.05))
        cell.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        cell.margins(x=0.12)
        cell.minorticks_off()
        cell.spines[["top", "right"]].set_visible(False)
    cells[0].set_ylabel("clips right in every attribute")
    cells[0].legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=130)


def _rounded(scores: Scores) -> Scores:
    return {name: round(value, 4) for name, value in scores.items()}


def main() -> None:
    """Make all runs, and rewrite the results after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"), help="folder of shards and runs")
    parser.add_argument("--questions", nargs="+", default=list(QUESTIONS), choices=QUESTIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each run")
    parser.add_argument("--results", type=Path, default=RESULTS / "scaling.json", help="JSON file to write")
    parser.add_argument("--plot", type=Path, default=PLOT, help="picture to draw")
    args = parser.parse_args()
    variants = list(dict.fromkeys(variant for question in args.questions for variant in QUESTIONS[question]))
    for variant, seed in track([(v, seed) for seed in args.seeds for v in variants], "scaling"):
        runs = keep(args.results, run_one(args.work, variant, seed))
        write_json(args.results, {"summary": summarise(runs), "runs": runs})
        draw(summarise(runs), args.plot)
    print(f"wrote {args.results} and {args.plot}")


if __name__ == "__main__":
    main()
