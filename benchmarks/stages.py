"""Compare two ways to choose the codebook of a training step, on the quickstart world at equal steps.

    python benchmarks/stages.py --work runs/ablations

`reference` trains one codebook a step, as the reference does; `stratified` trains all in every step, each clip
on one of them. Same model, clips, masks and number of clips for each codebook; no moving average. The shards
are those of ablations.py. A run that has finished is not repeated.
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
from statistics import mean, median, stdev
from typing import Any

import matplotlib
import torch
from ablations import T_95, hardware, make_shards

from magnet_train.apps.quickstart.report import read_metrics
from magnet_train.masking import draw_stage, stratified_stages
from magnet_train.models import MagnetTransformer
from magnet_train.training.objective import masked_cross_entropy_sum, predict_masked

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
CONFIGS = ("configs/base.yaml", "configs/quickstart.yaml", "configs/trainer/cpu.yaml")
SAMPLINGS = ("reference", "stratified")
MEASURES = ("loss", *(f"loss_codebook_{k}" for k in range(4)))
POINTS = 10  # validations of a run

Run = dict[str, Any]  # sampling, seed, steps, and a curve for each measure


def train(work: Path, sampling: str, seed: int, steps: int) -> Run:
    """Train once by the command that a user would type, and read what it wrote."""
    folder = work / f"stages-{sampling}-{steps}-{seed}"
    if not (folder / "finished").exists():
        options = {
            "--run": folder,
            "--seed_everything": seed,
            "--data.seed": seed,
            "--data.shards": work / "shards" / "train",
            "--data.val_shards": work / "shards" / "validation",
            "--model.stage_sampling": sampling,
            "--trainer.max_steps": steps,
            "--trainer.val_check_interval": steps // POINTS,
            "--trainer.enable_progress_bar": "false",
            "--trainer.enable_checkpointing": "false",
            "--trainer.callbacks": "[]",
        }
        words = [word for config in CONFIGS for word in ("-c", config)]
        words += [str(word) for pair in options.items() for word in pair]
        subprocess.run([sys.executable, "-m", "magnet_train", "fit", *words], check=True)
        (folder / "finished").touch()
    metrics = folder / "metrics.csv"
    validated = read_metrics(metrics, "val/")
    curves = {name: validated[name][1] for name in MEASURES}
    at = [step + 1 for step in validated["loss"][0]]
    return {
        "sampling": sampling,
        "seed": seed,
        "steps": at,
        "curves": curves,
    }


def compare(runs: list[Run]) -> dict[str, Any]:
    """Give, by measure, how much lower the last validation loss of `stratified` is, seed against the same seed.

    Returns:
        "gain": mean difference in nats per masked token, positive where stratified is better; "interval": half
        width of its 95 % interval; "seeds_ahead".
    """
    last = {(run["sampling"], run["seed"]): run["curves"] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    summary = {}
    for measure in MEASURES:
        gains = [last["reference", s][measure][-1] - last["stratified", s][measure][-1] for s in seeds]
        interval = T_95[len(gains)] * stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
        summary[measure] = {
            "gain": mean(gains),
            "interval": interval,
            "seeds_ahead": sum(gain > 0 for gain in gains),
        }
    return summary


def cpu_milliseconds(rounds: int = 8) -> dict[str, float]:
    """Measure what a step of each way costs: forward and backward at the quickstart's size, in CPU time."""
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
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablations"), help="folder for shards and runs"
    )
    parser.add_argument("--runs", type=Path, help="folder for runs alone; by default that for shards")
    parser.add_argument("--steps", type=int, default=500, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6), help="seeds of each way")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for stages.json and stages.png")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    make_shards(args.work)
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
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "stages.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(runs, args.results / "stages.png")
    print(json.dumps(content["comparison"], indent=1), content["cpu_ms_per_step"])


if __name__ == "__main__":
    main()
