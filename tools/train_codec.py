"""Train one of the small EnCodecs in the package: `python tools/train_codec.py --codec drums_and_bass --out DIR`.

The recipe is that of `magnet-train codec`, with the sound of the quickstart or of the benchmarks, and an oracle's
measurement at the end.
Shapes: audio float [B, 1, samples].

DIR gets config.json and model.safetensors (half precision) for transformers' EncodecModel.from_pretrained, and
training.json with the training time and the oracle's accuracy on encoded and decoded clips.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import EncodecModel

from magnet_train.apps.codec_training.recipe import DecoderTraining, Recipe, save, start_codec
from magnet_train.apps.quickstart.presets import PRESETS
from magnet_train.apps.quickstart.synthetic import Audio

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from harness.tones.presets import QUICKSTARTS

WORLDS = PRESETS | QUICKSTARTS
GATE = 0.95  # least accuracy of each attribute after encoding and decoding
GATE_CLIPS = 500
GATE_SEED = 777  # not used in training


@dataclass(frozen=True)
class Plan:
    """How a codec is made."""

    recipe: Recipe
    presets: tuple[str, ...]  # keys of WORLDS to train on; the codebooks come from the first one
    clips: int  # of each preset, to train on
    steps: int


FIT_CLIPS = 600  # from which transform and codebooks come
PLANS = {
    "quickstart": Plan(
        Recipe(
            sample_rate=8000,
            codebooks=4,
            card=256,
            ratios=(10, 16),
            whitening=0.6,
            vectors=32_000,
            iterations=20,
            noise_share=0.1,
            noise_weight=2.5,
            max_errors=0.9,
            hits_weight=0.0,
        ),
        presets=("full", "default"),
        clips=1200,
        steps=1900,
    ),
    "drums_and_bass": Plan(
        Recipe(
            sample_rate=16_000,
            codebooks=4,
            card=512,
            ratios=(20, 16),
            whitening=0.9,
            vectors=60_000,
            iterations=20,
            noise_share=1.0,
            noise_weight=1.0,
            max_errors=0.3,
            hits_weight=1.5,
        ),
        presets=("drums_and_bass",),
        clips=1200,
        steps=1000,
    ),
}
PLANS["band"] = replace(PLANS["drums_and_bass"], presets=("band",))


def train(recipe: Recipe, audio: Sequence[Tensor], steps: int, seed: int) -> EncodecModel:
    """Train a codec, and print the progress.

    Args:
        recipe: Of the codec.
        audio: Groups of clips, float [clips, samples]; lengths differ between groups.
        steps: Optimizer steps.
        seed: Seed of weights and batches.
    """
    torch.manual_seed(seed)
    model = start_codec(audio[0][:FIT_CLIPS], recipe)
    begin = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(
                f"  {time.monotonic() - begin:4.0f} s  step {step:5d} of {steps}  loss {loss:.3f}", flush=True
            )

    DecoderTraining(model, audio, recipe).run(steps, report)
    print(f"  {steps} steps in {time.monotonic() - begin:.0f} s", flush=True)
    return model


@torch.no_grad()
def through_codec(model: EncodecModel, clips: Sequence[Audio], batch: int = 50) -> list[Audio]:
    """Encode and decode clips of one length."""
    decoded: list[Audio] = []
    for first in range(0, len(clips), batch):
        audio = torch.from_numpy(np.stack(clips[first : first + batch]))[:, None]
        codes = model.encode(audio).audio_codes
        decoded.extend(model.decode(codes, [None]).audio_values[:, 0].numpy())
    return decoded


def ceiling(folder: Path, preset: str, clips: int = GATE_CLIPS, seed: int = GATE_SEED) -> dict[str, float]:
    """Load a codec and return the oracle's accuracy on clips encoded and decoded by it, by attribute."""
    model = EncodecModel.from_pretrained(folder, dtype=torch.float32).eval()
    captions, audio = zip(*WORLDS[preset].world(seed).clips(clips, "test"), strict=True)
    oracle = WORLDS[preset].oracle
    return oracle.accuracy(captions, oracle.read_clips(through_codec(model, audio)))


def main(argv: Sequence[str] | None = None) -> int:
    """Train a codec, save it and measure it; return 1 if the accuracy is below the gate."""
    parser = argparse.ArgumentParser(prog="python tools/train_codec.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--codec", choices=PLANS, required=True, help="which one")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: those of the packaged codec)")
    parser.add_argument("--seed", type=int, default=0, help="seed of clips and weights (default: 0)")
    parser.add_argument("--clips", type=int, help="training clips of each preset")
    parser.add_argument(
        "--gate-clips",
        type=int,
        default=GATE_CLIPS,
        help=f"clips of each preset to measure (default: {GATE_CLIPS})",
    )
    args = parser.parse_args(argv)
    plan = PLANS[args.codec]
    steps, clips = args.steps or plan.steps, args.clips or plan.clips

    begin = time.monotonic()
    print(f"synthesising {clips} clips of each preset ...", flush=True)
    audio = [_clips(preset, clips, args.seed) for preset in plan.presets]
    print(f"training for {steps} steps on {torch.get_num_threads()} thread(s) ...", flush=True)
    model = train(plan.recipe, audio, steps, args.seed)
    save(model, args.out)
    training_seconds = time.monotonic() - begin

    print(f"measuring {args.gate_clips} fresh clips of each preset ...", flush=True)
    accuracies = {preset: ceiling(args.out, preset, args.gate_clips) for preset in plan.presets}
    passed = all(value >= GATE for scores in accuracies.values() for value in scores.values())
    weights = args.out / "model.safetensors"
    record = {
        "script": "python tools/train_codec.py",
        "codec": args.codec,
        "steps": steps,
        "seconds_with_data_and_start": round(training_seconds, 1),
        "threads": torch.get_num_threads(),
        "seed": args.seed,
        "gate": {"accuracy": GATE, "clips": args.gate_clips, "seed": GATE_SEED, "passed": passed},
        "ceiling": accuracies,
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))
    print(f"wrote {args.out}; {'passed' if passed else 'FAILED'} the gate")
    return 0 if passed else 1


def _clips(preset: str, count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.stack([audio for _, audio in WORLDS[preset].world(seed).clips(count)]))


if __name__ == "__main__":
    raise SystemExit(main())
