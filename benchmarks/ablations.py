"""Repeat the paper's two ablations on synthetic tones: restricted context, and spans of 3 frames.

    python benchmarks/ablations.py --work runs/ablations

Each run trains with the commands that a user would type, then generates test captions for the oracle to read. Finished
runs are not repeated, so an interrupted benchmark can be continued.

Source: arXiv 2401.04577, table 2 (FAD of 10 s models; lower for restricted context, and for 3 than for 1).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.progress import track

import magnet_train
from harness.quickstart_world import (
    RESULTS,
    command,
    fit_words,
    generate_and_read,
    half_width,
    hardware,
    make_world_shards,
    scores,
    spread_over_seeds,
    write_json,
)
from harness.tones.world import ToneWorld
from magnet_train.apps.quickstart.report import read_metrics

SEEN, UNSEEN = 120, 48  # test captions of combinations that training had, and of held-out ones

VARIANTS: dict[str, list[str]] = {
    "base": [],
    "full_context": ["--model.lm.subcodes_context", "-1"],
    "span_1": ["--model.lm.span_len", "1"],
    "words": ["--model.text", json.dumps({"class_path": "magnet_train.text.WordText"})],
}
ONE_SEED = ("words",)  # compares only how fast the text encoders learn
# By name: the variant that the paper finds better, the other, and whether their losses compare. Losses of two span
# lengths do not: they are means over different masks.
ABLATIONS = {
    "restricted context": ("base", "full_context", True),
    "spans of 3": ("base", "span_1", False),
}

Run = dict[str, Any]  # variant, seed, minutes, measures: one record of the JSON


def run_one(work: Path, variant: str, seed: int, steps: int) -> Run:
    """Train, generate and score one variant with one seed; keep the record beside the checkpoint."""
    torch.set_num_threads(1)
    folder = work / f"{variant}-{steps}-{seed}"
    record = folder / "measures.json"
    if not record.exists():
        started = time.monotonic()
        command("fit", *base_fit_words(work, folder, seed, steps), *VARIANTS[variant])
        trained = time.monotonic()
        run = {"variant": variant, "seed": seed, "seconds_per_step": (trained - started) / steps}
        run["measures"] = validation_losses(folder) | generation_scores(folder / "last.ckpt", seed)
        record.write_text(json.dumps(run | {"minutes": (time.monotonic() - started) / 60}), encoding="utf-8")
    return dict(json.loads(record.read_text(encoding="utf-8")))


def base_fit_words(work: Path, run: Path, seed: int, steps: int) -> list[str]:
    """Return the words after `magnet-train fit` for the base variant.

    There is no moving average: .99 every ten steps would still be mostly the untrained model after so few.
    """
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": ".", "save_last": True, "every_n_train_steps": steps},
    }
    options = {"trainer.val_check_interval": steps, "trainer.callbacks": json.dumps([checkpoint])}
    return fit_words(work, run, seed, steps, **options)


def validation_losses(folder: Path) -> dict[str, float]:
    """Read the last validation loss of each codebook, nats per masked token."""
    losses = read_metrics(folder / "metrics.csv", "val/loss_codebook_")
    return {f"val_loss_codebook_{k}": values[-1] for k, (_, values) in losses.items()}


def generation_scores(checkpoint: Path, seed: int) -> dict[str, float]:
    """Generate test captions, and return how often each attribute, and the whole clip, is right (0..1)."""
    magnet = magnet_train.Magnet.from_pretrained(checkpoint)
    measured = {}
    for kind, count in (("seen", SEEN), ("unseen", UNSEEN)):
        captions = ToneWorld("default").captions(count, "test", unseen=kind == "unseen")
        for name, value in scores(captions, generate_and_read(magnet, captions, seed)).items():
            measured[f"{kind}_{name}"] = value
    return measured


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Return mean and spread of each variant, and the result of each ablation.

    Args:
        runs: Records of `run_one`.

    Returns:
        "variants": by variant and measure, mean and standard deviation over seeds (None for one seed).
        "ablations": by ablation and measure, see `compare`, without measures that do not compare.
    """
    by_variant: dict[str, dict[int, dict[str, float]]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_variant.setdefault(run["variant"], {})[run["seed"]] = run["measures"]
    variants = {
        variant: {
            measure: spread_over_seeds([measures[measure] for measures in seeds.values()])
            for measure in next(iter(seeds.values()))
        }
        for variant, seeds in by_variant.items()
    }
    ablations = {}
    for name, (better, worse, losses_compare) in ABLATIONS.items():
        first, second = by_variant.get(better, {}), by_variant.get(worse, {})
        shared = sorted(first.keys() & second.keys())
        if shared:
            ablations[name] = {
                measure: compare(
                    [first[s][measure] for s in shared], [second[s][measure] for s in shared], measure
                )
                for measure in variants[better]
                if losses_compare or not measure.startswith("val_loss")
            }
    return {"variants": variants, "ablations": ablations}


def compare(better: Sequence[float], worse: Sequence[float], measure: str) -> dict[str, Any]:
    """Compare two variants, seed against the same seed.

    Args:
        better: Values of the variant that the paper finds better, one a seed.
        worse: Values of the other with the same seeds.
        measure: Its name; a loss is better if lower, anything else if higher.

    Returns:
        "gain": mean difference, positive in the paper's direction; "interval": half width of its 95 %
        interval (None for one seed); "seeds_in_direction"; "direction_holds"; "beyond_noise": whether the interval
        excludes 0, on either side.
    """
    sign = -1 if measure.startswith("val_loss") else 1
    gains = [sign * (a - b) for a, b in zip(better, worse, strict=True)]
    gain, interval = mean(gains), half_width(gains)
    return {
        "gain": gain,
        "interval": interval,
        "seeds_in_direction": sum(value > 0 for value in gains),
        "direction_holds": gain > 0,
        "beyond_noise": interval is not None and abs(gain) > interval,
    }


def write_results(runs: Sequence[Run], steps: int, work: Path, path: Path) -> None:
    """Write records and summary as JSON, numbers to four digits."""
    codec = json.loads((work / "shards" / "train" / "manifest.json").read_text(encoding="utf-8"))["codec"]
    settings = {"steps": steps, "codec_sha256": codec["sha256"], "captions": {"seen": SEEN, "unseen": UNSEEN}}
    order = list(VARIANTS)
    runs = sorted(runs, key=lambda run: (order.index(run["variant"]), run["seed"]))
    write_json(path, _rounded({"hardware": hardware(), **settings, **summarise(runs), "runs": runs}))


def main() -> None:
    """Run all variants, and rewrite the results after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of shards and runs")
    parser.add_argument("--steps", type=int, default=600, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6), help="seeds of each variant")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS / "ablations.json", help="JSON file to write")
    args = parser.parse_args()

    make_world_shards(args.work)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes below when they import torch
    wanted = [
        (variant, seed)
        for seed in range(args.seeds)
        for variant in VARIANTS
        if seed == 0 or variant not in ONE_SEED
    ]
    runs = []
    # A fresh process for each run, so that runs share no state.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=fresh, max_tasks_per_child=1) as pool:
        futures = [pool.submit(run_one, args.work, *which, args.steps) for which in wanted]
        for future in track(as_completed(futures), "ablations", total=len(futures)):
            runs.append(future.result())
            write_results(runs, args.steps, args.work, args.results)
    print(f"wrote {args.results}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
