"""Repeat the paper's two ablations on the quickstart world: restricted context, and spans of 3 frames.

    python benchmarks/ablations.py --work runs/ablations

Every run trains by the commands a user would type, generates captions it has not seen, and lets the oracle
listen. A run that has finished is not repeated, so an interrupted benchmark goes on where it stopped.

Source: arXiv 2401.04577, table 2 (FAD of 10 s models; lower for restricted context, and for 3 than for 1).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.progress import track

import magnet_train
from magnet_train.apps.quickstart.captions import ATTRIBUTES, Caption
from magnet_train.apps.quickstart.oracle import Readings, accuracy, expected_windows, read_clips
from magnet_train.apps.quickstart.report import read_metrics
from magnet_train.apps.quickstart.world import ToneWorld
from magnet_train.cli.main import main as magnet_train_command
from magnet_train.errors import UserError

RESULTS = Path(__file__).parent / "results" / "ablations.json"
CONFIGS = ("configs/base.yaml", "configs/quickstart.yaml", "configs/trainer/cpu.yaml")
TRAINING, VALIDATION = 1400, 160  # clips, as the quickstart has
SEEN, UNSEEN = 120, 48  # test captions of combinations that training had, and of those held out of it
BATCH = 60  # clips generated at a time

VARIANTS: dict[str, list[str]] = {
    "base": [],
    "full_context": ["--model.lm.subcodes_context", "-1"],
    "span_1": ["--model.lm.span_len", "1"],
    "words": ["--model.text", json.dumps({"class_path": "magnet_train.text.WordText"})],
}
ONE_SEED = ("words",)  # asks only which text encoder learns faster
# What the paper finds better first. Losses of two span lengths are means over different masks, hence no test.
ABLATIONS = {
    "restricted context": ("base", "full_context", True),
    "spans of 3": ("base", "span_1", False),
}
# Without a moving average: .99 every ten steps would still be mostly the untrained model after so few.
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
# Two-sided 95 % points of Student's t by number of seeds.
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}

Run = dict[str, Any]  # variant, seed, minutes, measures: one record of the JSON


def make_shards(work: Path) -> None:
    """Write the quickstart's clips and turn them into tokens, unless an earlier call has."""
    for split, count in (("train", TRAINING), ("validation", VALIDATION)):
        shards = work / "shards" / split
        if not (shards / "manifest.json").exists():
            bar = partial(track, description="synthesise", total=count)
            ToneWorld("default").write(work / "audio" / split, count, split, bar)
            command(
                "tokenize",
                "--audio",
                str(work / "audio" / split),
                "--out",
                str(shards),
                "--codec",
                "quickstart",
            )


def run_one(work: Path, variant: str, seed: int, steps: int) -> Run:
    """Train, generate and score one variant with one seed; keeps the record beside the checkpoint."""
    torch.set_num_threads(1)
    folder = work / f"{variant}-{steps}-{seed}"
    record = folder / "measures.json"
    if not record.exists():
        started = time.monotonic()
        command("fit", *fit_options(work, folder, variant, seed, steps))
        trained = time.monotonic()
        run = {"variant": variant, "seed": seed, "seconds_per_step": (trained - started) / steps}
        run["measures"] = validation_losses(folder) | generation_scores(folder / "last.ckpt", seed)
        record.write_text(json.dumps(run | {"minutes": (time.monotonic() - started) / 60}), encoding="utf-8")
    return dict(json.loads(record.read_text(encoding="utf-8")))


def fit_options(work: Path, folder: Path, variant: str, seed: int, steps: int) -> list[str]:
    """Return the words after `magnet-train fit`."""
    checkpoint = {
        "class_path": CHECKPOINT,
        "init_args": {"dirpath": ".", "save_last": True, "every_n_train_steps": steps},
    }
    options = {
        "--run": folder,
        "--seed_everything": seed,
        "--data.seed": seed,
        "--data.shards": work / "shards" / "train",
        "--data.val_shards": work / "shards" / "validation",
        "--trainer.max_steps": steps,
        "--trainer.val_check_interval": steps,
        "--trainer.enable_progress_bar": "false",
        "--trainer.callbacks": json.dumps([checkpoint]),
    }
    words = [word for config in CONFIGS for word in ("-c", config)]
    words += [str(word) for pair in options.items() for word in pair]
    return words + VARIANTS[variant]


def validation_losses(folder: Path) -> dict[str, float]:
    """Read the last validation loss of each codebook, nats per masked token."""
    losses = read_metrics(folder / "metrics.csv", "val/loss_codebook_")
    return {f"val_loss_codebook_{k}": values[-1] for k, (_, values) in losses.items()}


def generation_scores(checkpoint: Path, seed: int) -> dict[str, float]:
    """Generate test captions and return how often each attribute, and the whole clip, is right (0..1)."""
    model = magnet_train.Magnet.from_pretrained(checkpoint)
    scores = {}
    for kind, count in (("seen", SEEN), ("unseen", UNSEEN)):
        captions = ToneWorld("default").captions(count, "test", unseen=kind == "unseen")
        readings: Readings = []
        for first in range(0, count, BATCH):
            texts = [caption.text for caption in captions[first : first + BATCH]]
            readings += read_clips(model.generate(texts, seed=seed + first)[:, 0].numpy())
        for attribute, value in accuracy(captions, readings).items():
            scores[f"{kind}_{attribute}"] = value
        scores[f"{kind}_whole"] = whole_clips(captions, readings)
    return scores


def whole_clips(captions: Sequence[Caption], readings: Readings) -> float:
    """Return the share of clips in which every attribute asked for is right, 0..1."""
    right = 0
    for caption, reading in zip(captions, readings, strict=True):
        pairs = list(zip(expected_windows(caption.events, len(reading)), reading, strict=True))
        right += all(
            getattr(asked, attribute) in ("", getattr(heard, attribute))
            for asked, heard in pairs
            for attribute in ATTRIBUTES
        )
    return right / len(captions)


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Return mean and spread of each variant, and what each ablation shows.

    Args:
        runs: Records of `run_one`.

    Returns:
        "variants": by variant and measure, mean and standard deviation over seeds (None for one seed).
        "ablations": by ablation and measure, see `compare`; measures that do not compare are left out.
    """
    by_variant: dict[str, dict[int, dict[str, float]]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_variant.setdefault(run["variant"], {})[run["seed"]] = run["measures"]
    variants = {
        variant: {
            measure: _spread([measures[measure] for measures in seeds.values()])
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
    """Say whether the variant that the paper finds better is better here, seed against the same seed.

    Args:
        better: Values of the variant that should win, one a seed.
        worse: Values of the other with the same seeds.
        measure: Its name; of losses the lower one wins, else the higher one.

    Returns:
        "gain": mean difference, positive in the paper's direction; "interval": half width of its 95 %
        interval (None for one seed); "seeds_in_direction"; "direction_holds"; "beyond_noise": the interval
        leaves out 0, on either side.
    """
    sign = -1 if measure.startswith("val_loss") else 1
    gains = [sign * (a - b) for a, b in zip(better, worse, strict=True)]
    gain = mean(gains)
    interval = T_95[len(gains)] * stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
    return {
        "gain": gain,
        "interval": interval,
        "seeds_in_direction": sum(value > 0 for value in gains),
        "direction_holds": gain > 0,
        "beyond_noise": interval is not None and abs(gain) > interval,
    }


def hardware() -> dict[str, Any]:
    """Describe the machine and the versions that matter."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "magnet_train": magnet_train.__version__,
    }


def write_results(runs: Sequence[Run], steps: int, work: Path, path: Path) -> None:
    """Write records and summary as JSON, numbers to four digits."""
    codec = json.loads((work / "shards" / "train" / "manifest.json").read_text(encoding="utf-8"))["codec"]
    settings = {"steps": steps, "codec_sha256": codec["sha256"], "captions": {"seen": SEEN, "unseen": UNSEEN}}
    order = list(VARIANTS)
    runs = sorted(runs, key=lambda run: (order.index(run["variant"]), run["seed"]))
    content = {"hardware": hardware(), **settings, **summarise(runs), "runs": runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(content), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablations"), help="folder for shards and runs"
    )
    parser.add_argument("--steps", type=int, default=600, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6), help="seeds of each variant")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write")
    args = parser.parse_args()

    make_shards(args.work)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes below when they import torch
    wanted = [
        (variant, seed)
        for seed in range(args.seeds)
        for variant in VARIANTS
        if seed == 0 or variant not in ONE_SEED
    ]
    runs = []
    # A fresh process for each run, so that nothing of one is left in the next.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=fresh, max_tasks_per_child=1) as pool:
        futures = [pool.submit(run_one, args.work, *which, args.steps) for which in wanted]
        for future in track(as_completed(futures), "ablations", total=len(futures)):
            runs.append(future.result())
            write_results(runs, args.steps, args.work, args.results)
    print(f"wrote {args.results}")


def command(*words: str) -> None:
    """Run `magnet-train` with these words.

    Raises:
        UserError: It failed.
    """
    if magnet_train_command(words) != 0:
        raise UserError(f"`magnet-train {words[0]}` failed; mend what it names above.")


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
