"""Compare two ways to choose the codebook of a training step, on synthetic tones at equal steps.

    python benchmarks/stages.py --work runs/ablations

`reference` trains one codebook a step, as the reference does; `stratified` trains all codebooks in each step, each clip
on one of them. Model, clips, masks and the number of clips of each codebook are equal; there is no moving average. The
shards are those of ablations.py. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib
import torch

from harness.quickstart_world import RESULTS, fit_words, half_width, hardware, make_world_shards, write_json
from magnet_train.apps.quickstart.report import read_metrics
from magnet_train.masking import draw_stage, stratified_stages
from magnet_train.models import MagnetTransformer
from magnet_train.training.objective import masked_cross_entropy_sum, predict_masked

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SAMPLINGS = ("reference", "stratified")
MEASURES = ("loss", *(f"loss_codebook_{k}" for k in range(4)))
POINTS = 10  # validations of a run

Run = dict[str, Any]  # sampling, seed, steps, and a curve for each measure


def train(work: Path, sampling: str, seed: int, steps: int) -> Run:
    """Train once with the command of a user, and return its validation curves."""
    folder = work / f"stages-{sampling}-{steps}-{seed}"
    if not (folder / "finished").exists():
        options = {
            "model.stage_sampling": sampling,
            "trainer.val_check_interval": steps // POINTS,
            "trainer.enable_checkpointing": "false",
            "trainer.callbacks": "[]",
        }
        words = fit_words(work, folder, seed, steps, **options)
        subprocess.run([sys.executable, "-m", "magnet_train", "fit", *words], check=True)
        (folder / "finished").touch()
    metrics = folder / "metrics.csv"
    validated = read_metrics(metrics, "val/")
    curves = {name: validated[name][1] for name in MEASURES}
    at = [step + 1 for step in validated["loss"][0]]
    return {"sampling": sampling, "seed": seed, "steps": at, "curves": curves}


def compare(runs: list[Run]) -> dict[str, Any]:
    """Compare the last validation losses, seed against the same seed, by measure.

    Returns:
        "gain": mean difference in nats per masked token, positive where stratified is better; "interval": half
        width of its 95 % interval; "seeds_ahead".
    """
    last = {(run["sampling"], run["seed"]): run["curves"] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    summary = {}
    for measure in MEASURES:
        gains = [last["reference", s][measure][-1] - last["stratified", s][measure][-1] for s in seeds]
        ahead = sum(gain > 0 for gain in gains)
        summary[measure] = {"gain": mean(gains), "interval": half_width(gains), "seeds_ahead": ahead}
    return summary


def cpu_milliseconds(rounds: int = 8) -> dict[str, float]:
    """Return the CPU time of a forward and backward pass of each sampling, at the quickstart's size (ms)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clips, frames, card, weights = 16, 64, 256, [0.4, 0.2, 0.2, 0.2]
    lm = MagnetTransformer(4, card, 64, dim=128, num_heads=4, num_layers=4)
    tokens, mask = torch.randint(card, (clips, 4, frames)), torch.rand(clips, frames) < 0.64
    text, valid = torch.randn(clips, 8, 64), torch.ones(clips, frames, dtype=torch.bool)
    spent: dict[str, list[float]] = {sampling: [] for sampling in SAMPLINGS}
    for number in range(rounds + 1):
        for sampling in SAMPLINGS:
            start = time.process_time()
            for step in range(10 * number, 10 * number + 10):
                stages = [draw_stage(0, step, weights)] * clips
                if sampling == "stratified":
                    stages = stratified_stages(torch.arange(clips) + step * clips, weights).tolist()
                predictions = predict_masked(lm, tokens, mask, valid, stages, text)
                torch.stack(
                    [masked_cross_entropy_sum(p.logits, p.targets) for p in predictions]
                ).sum().backward()
            spent[sampling].append((time.process_time() - start) * 100)
    return {sampling: median(values[1:]) for sampling, values in spent.items()}  # the first round warms up


def draw(runs: list[Run], path: Path) -> None:
    """Draw the validation losses of all codebooks."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(16, 3.2), constrained_layout=True)
    for axis, measure in zip(axes, MEASURES, strict=True):
        for sampling, colour in zip(SAMPLINGS, ("tab:gray", "tab:blue"), strict=True):
            for number, run in enumerate(r for r in runs if r["sampling"] == sampling):
                label = sampling if number == 0 else None
                axis.plot(run["steps"], run["curves"][measure], color=colour, label=label, alpha=0.8)
        axis.set(title=measure.replace("_", " "), xlabel="step")
    axes[0].set_ylabel("nats per masked token")
    axes[0].legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Train all runs, compare them, and write the record and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of shards and runs")
    parser.add_argument("--runs", type=Path, help="folder of runs, if not that of shards")
    parser.add_argument("--steps", type=int, default=500, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6), help="seeds of each sampling")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of stages.json and stages.png")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    make_world_shards(args.work)
    runs_folder = args.runs or args.work
    if runs_folder != args.work and not (runs_folder / "shards").exists():
        runs_folder.mkdir(parents=True, exist_ok=True)
        (runs_folder / "shards").symlink_to((args.work / "shards").resolve())
    wanted = [(sampling, seed) for seed in range(args.seeds) for sampling in SAMPLINGS]
    with ThreadPoolExecutor(args.jobs) as pool:  # each run is a process of its own
        runs = list(pool.map(lambda which: train(runs_folder, *which, args.steps), wanted))
    content = {
        "hardware": hardware(),
        "threads": 1,
        "jobs": args.jobs,
        "steps": args.steps,
        "comparison": compare(runs),
        "cpu_ms_per_step": cpu_milliseconds(),
        "runs": runs,
    }
    write_json(args.results / "stages.json", content)
    draw(runs, args.results / "stages.png")
    print(json.dumps(content["comparison"], indent=1), content["cpu_ms_per_step"])


if __name__ == "__main__":
    main()
