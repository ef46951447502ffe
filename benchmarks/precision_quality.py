"""Show that bfloat16 learns and sounds as float32 does, on synthetic tones.

    python benchmarks/precision_quality.py curves --work runs/ablations          # 300 steps, three seeds: half an hour
    python benchmarks/precision_quality.py oracle runs/tones/run/last.ckpt  # what the oracle hears

The runs of `curves` are made by `fit`, with the same clips and masks in both precisions; its shards are those of
ablations.py, and finished runs are not repeated. The seeds of float32 among themselves show what a difference means.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from harness.quickstart_world import (
    RESULTS,
    fit_words,
    half_width,
    hardware,
    make_world_shards,
    scores,
    write_json,
)
from harness.tones.oracle import read_clips
from harness.tones.world import PRESETS, ToneWorld
from magnet_train import Magnet
from magnet_train.apps.quickstart.report import read_metrics

PRECISIONS = ("32-true", "bf16-mixed")
POINTS = 6  # validations of a run


def train(work: Path, precision: str, seed: int, steps: int, dim: int, layers: int) -> list[float]:
    """Train once with the command of a user, and return the validation losses (nats a token)."""
    folder = work / f"precision-{precision}-{dim}-{layers}-{steps}-{seed}"
    if not (folder / "finished").exists():
        options = {
            "model.lm.dim": dim,
            "model.lm.num_heads": max(1, dim // 64),
            "model.lm.num_layers": layers,
            "trainer.precision": precision,
            "trainer.val_check_interval": max(1, steps // POINTS),
            "trainer.enable_checkpointing": "false",
            "trainer.callbacks": "[]",
        }
        words = fit_words(work, folder, seed, steps, **options)
        subprocess.run([sys.executable, "-m", "magnet_train", "fit", *words], check=True)
        (folder / "finished").touch()
    losses: list[float] = read_metrics(folder / "metrics.csv", "val/")["loss"][1]
    return losses


def compare(curves: dict[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Compare bfloat16's curves with float32's of the same seeds, beside the spread of float32 over seeds.

    Args:
        curves: By precision, the validation losses of each seed.

    Returns:
        Of the last validation "gap" (mean of bfloat16 - float32, nats), "interval" (half width of its 95 % interval) and
        "seed_std" of float32; "largest_gap" of all validations, and "within_noise": whether no validation's mean gap
        exceeds the standard deviation over seeds there. None where one seed gives no spread.
    """
    points = list(zip(*(zip(*curves[precision], strict=True) for precision in PRECISIONS), strict=True))
    gaps = [[b - a for a, b in zip(wide, narrow, strict=True)] for wide, narrow in points]
    spreads = [stdev(wide) if len(wide) > 1 else None for wide, _ in points]
    within = [s is not None and abs(mean(gap)) <= s for gap, s in zip(gaps, spreads, strict=True)]
    return {
        "final": {precision: [curve[-1] for curve in curves[precision]] for precision in PRECISIONS},
        "gap": mean(gaps[-1]),
        "interval": half_width(gaps[-1]),
        "seed_std": spreads[-1],
        "largest_gap": max(abs(mean(gap)) for gap in gaps),
        "within_noise": None if spreads[-1] is None else all(within),
    }


def oracle(checkpoint: Path, preset: str, clips: int) -> dict[str, Any]:
    """Return the oracle's accuracy for the same captions and seeds in both precisions, and the share of equal tokens."""
    captions = ToneWorld(preset).captions(clips, "test")
    results, tokens = {}, []
    for dtype in ("float32", "bfloat16"):
        magnet = Magnet.from_pretrained(checkpoint, dtype=dtype)
        tokens.append(magnet.generate_tokens([caption.text for caption in captions], seed=0))
        readings = read_clips(magnet.codec.decode(tokens[-1])[:, 0].numpy())
        results[dtype] = {name: round(share, 3) for name, share in scores(captions, readings).items()}
    return {"clips": clips, **results, "equal_tokens": float((tokens[0] == tokens[1]).float().mean())}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="what", required=True)
    curve = kinds.add_parser("curves", help="train in both precisions")
    curve.add_argument("--work", type=Path, default=Path("runs/ablations"), help="shards and runs")
    for name, default in (("steps", 300), ("seeds", 3), ("dim", 256), ("layers", 6)):
        curve.add_argument(f"--{name}", type=int, default=default)
    hear = kinds.add_parser("oracle", help="generate in both precisions")
    hear.add_argument("checkpoint", type=Path, help="of benchmarks/tones.py")
    hear.add_argument("--preset", choices=PRESETS, default="default", help="the world of that model")
    hear.add_argument("--clips", type=int, default=240)
    for kind in (curve, hear):
        kind.add_argument("--out", type=Path, default=RESULTS / "precision_quality.json")
    args = parser.parse_args()
    if args.what == "oracle":
        name, measured = f"oracle, {args.preset}", oracle(args.checkpoint, args.preset, args.clips)
    else:
        make_world_shards(args.work)
        seeds = range(args.seeds)
        curves = {
            precision: [train(args.work, precision, s, args.steps, args.dim, args.layers) for s in seeds]
            for precision in PRECISIONS
        }
        name = f"curves, dim {args.dim}, {args.layers} layers, {args.steps} steps"
        measured = {
            "hardware": hardware(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            **compare(curves),
            "curves": curves,
        }
    print(json.dumps(measured, indent=1))
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    write_json(args.out, record | {name: measured})


if __name__ == "__main__":
    main()
