"""Train the small EnCodec of the quickstart: `python tools/train_codec.py --out DIR`.

The recipe is that of `magnet-train codec`, with the sound of the quickstart and an oracle's measurement at the end.
Shapes: audio float [B, 1, samples] at 8 kHz.

DIR gets config.json and model.safetensors (half precision, 2 MB) for transformers' EncodecModel.from_pretrained, and
training.json with the training time and the oracle's accuracy on encoded and decoded clips.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import EncodecModel

from magnet_train.apps.codec_training.recipe import DecoderTraining, Recipe, save, start_codec
from magnet_train.apps.quickstart.captions import Caption
from magnet_train.apps.quickstart.oracle import accuracy, read_clips
from magnet_train.apps.quickstart.world import PRESETS, SAMPLE_RATE, Audio, ToneWorld

GATE = 0.95  # least accuracy of each attribute after encoding and decoding
GATE_CLIPS = 500
GATE_SEED = 777  # not used in training
CLIPS = 1200  # training clips of each preset
FIT_CLIPS = 600  # of the default preset, from which transform and codebooks come
STEPS = 1900
RECIPE = Recipe(
    sample_rate=SAMPLE_RATE,
    codebooks=4,
    card=256,
    ratios=(10, 16),
    whitening=0.6,
    vectors=32_000,
    iterations=20,
    noise_share=0.1,
    noise_weight=2.5,
    max_errors=0.9,
)


def train(audio: Sequence[Tensor], steps: int, seed: int) -> EncodecModel:
    """Train a codec, and print the progress.

    Args:
        audio: Groups of clips, float [clips, samples]; lengths differ between groups.
        steps: Optimizer steps.
        seed: Seed of weights and batches.
    """
    torch.manual_seed(seed)
    model = start_codec(audio[0][:FIT_CLIPS], RECIPE)
    begin = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(
                f"  {time.monotonic() - begin:4.0f} s  step {step:5d} of {steps}  loss {loss:.3f}", flush=True
            )

    DecoderTraining(model, audio, RECIPE).run(steps, report)
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
    captions: list[Caption] = []
    audio: list[Audio] = []
    for caption, clip in ToneWorld(preset, seed).clips(clips, "test"):
        captions.append(caption)
        audio.append(clip)
    return accuracy(captions, read_clips(through_codec(model, audio)))


def main(argv: Sequence[str] | None = None) -> int:
    """Train a codec, save it and measure it; return 1 if the accuracy is below the gate."""
    parser = argparse.ArgumentParser(prog="python tools/train_codec.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help=f"optimizer steps (default: {STEPS}, about 3 minutes on one core)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of clips and weights (default: 0)")
    parser.add_argument(
        "--clips", type=int, default=CLIPS, help=f"training clips of each preset (default: {CLIPS})"
    )
    parser.add_argument(
        "--gate-clips",
        type=int,
        default=GATE_CLIPS,
        help=f"clips of each preset to measure (default: {GATE_CLIPS})",
    )
    args = parser.parse_args(argv)

    begin = time.monotonic()
    print(f"synthesising {args.clips} clips of each preset ...", flush=True)
    audio = [_clips(preset, args.clips, args.seed) for preset in reversed(PRESETS)]
    print(f"training for {args.steps} steps on {torch.get_num_threads()} thread(s) ...", flush=True)
    model = train(audio, args.steps, args.seed)
    save(model, args.out)
    training_seconds = time.monotonic() - begin

    print(f"measuring {args.gate_clips} fresh clips of each preset ...", flush=True)
    accuracies = {preset: ceiling(args.out, preset, args.gate_clips) for preset in PRESETS}
    passed = all(value >= GATE for scores in accuracies.values() for value in scores.values())
    weights = args.out / "model.safetensors"
    record = {
        "script": "python tools/train_codec.py",
        "steps": args.steps,
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
    return torch.from_numpy(np.stack([audio for _, audio in ToneWorld(preset, seed).clips(count)]))


if __name__ == "__main__":
    raise SystemExit(main())
