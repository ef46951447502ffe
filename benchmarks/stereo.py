"""Does each channel of a generated stereo clip play what its half of the caption says?

    python benchmarks/stereo.py --work runs/stereo

One channel of a clip plays a tone and the other noise, each in a rhythm of its own; the caption tells on which side the
tone is. The quickstart's mono codec, its first two codebooks, encodes the two channels as interleaved streams. The commands
that a user would type train the model, and the oracle reads each channel by itself.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from harness.quickstart_world import (
    BATCH,
    RESULTS,
    VALIDATION,
    command,
    config_words,
    hardware,
    option_words,
    write_json,
)
from harness.tones.captions import Caption, Event, seen_events
from harness.tones.oracle import accuracy, chance, read_clips
from harness.tones.world import SAMPLE_RATE, ToneWorld
from magnet_train import Magnet
from magnet_train.apps.quickstart.synthetic import SPLITS
from magnet_train.audio import write_audio

SIDES = ("left", "right")
TRAINING = 2800  # clips, twice the quickstart's
SCORED = 120  # clips
TEXT = "configs/text/t5_scratch.yaml"  # the quickstart's own vocabulary has no sides
SETTINGS = {
    # Left and right of the first codebook, then of the second.
    "model.stage_weights": [0.35, 0.35, 0.15, 0.15],
    "model.decoding.decoding_steps": [10, 10, 4, 4],
    # At the quickstart's 2e-3 this text encoder told only rhythms apart after 2,800 steps.
    "model.optimizer.init_args.lr": 1e-3,
    "trainer.enable_progress_bar": "false",
}

Clips = npt.NDArray[np.float32]  # [N, 2, samples]


def clips(count: int, split: str) -> Iterator[tuple[Caption, Clips]]:
    """Yield captions of two events, left and right, each with its clip, float32 [2, samples]."""
    world = ToneWorld()
    tones = [event for event in seen_events() if event.pitch]
    noises = [event for event in seen_events() if not event.pitch]
    for index in range(count):
        rng = np.random.default_rng([SPLITS.index(split), index])
        tone, noise = tones[rng.integers(len(tones))], noises[rng.integers(len(noises))]
        side = int(rng.integers(2))
        events = (noise, tone) if side else (tone, noise)
        text = f"{tone.rhythm} {tone.timbre} {tone.pitch} on the {SIDES[side]}, {noise.rhythm} noise opposite"
        yield Caption(text, events), np.stack([world.render([event], rng) for event in events])


def make_shards(work: Path, count: int, split: str) -> Path:
    """Write the clips of a split and tokenize them, unless an earlier run has."""
    audio, shards = work / "audio" / split, work / "shards" / split
    if not (shards / "manifest.json").exists():
        audio.mkdir(parents=True, exist_ok=True)
        for index, (caption, sound) in enumerate(track(clips(count, split), "synthesise", total=count)):
            path = audio / f"{index:05d}.wav"
            write_audio(path, torch.from_numpy(sound), SAMPLE_RATE)
            path.with_suffix(".json").write_text(json.dumps({"text": caption.text}), encoding="utf-8")
        folders = ("--audio", str(audio), "--out", str(shards))
        command("tokenize", *folders, "--codec", "quickstart", "--codebooks", "2", "--stereo")
    return shards


def score(captions: list[Caption], sound: Clips) -> dict[str, dict[str, float]]:
    """Return the oracle's accuracy of each channel against its half of the captions."""
    sides = enumerate(SIDES)
    return {
        side: accuracy(_half(captions, channel), read_clips(sound[:, channel])) for channel, side in sides
    }


def sides(captions: list[Caption], sound: Clips) -> dict[str, float]:
    """Return the share of clips with tone and noise on their sides, 0..1, and of those with two rhythms, with these so."""
    left, right = (read_clips(sound[:, channel]) for channel in (0, 1))
    heard = [(*on_left, *on_right) for on_left, on_right in zip(left, right, strict=True)]
    pairs = [(caption.events, events) for caption, events in zip(captions, heard, strict=True)]
    kinds = [(_kinds(wanted), _kinds(found)) for wanted, found in pairs]
    rhythms = [
        ([event.rhythm for event in wanted], [event.rhythm for event in found]) for wanted, found in pairs
    ]
    differ = [(wanted, found) for wanted, found in rhythms if wanted[0] != wanted[1]]
    return {
        "tone_and_noise": mean(wanted == found for wanted, found in kinds),
        "clips_with_two_rhythms": len(differ),
        "rhythms": mean(wanted == found for wanted, found in differ),
        "rhythms_exchanged": mean(wanted[::-1] == found for wanted, found in differ),
    }


def _kinds(events: Sequence[Event]) -> list[str]:
    return [event.timbre if event.timbre in ("noise", "") else "tone" for event in events]


def measure(magnet: Magnet, seed: int) -> dict[str, Any]:
    """Generate the test captions; return accuracies beside chance and ceiling, and with the channels swapped."""
    captions, real = zip(*clips(SCORED, "test"), strict=True)
    captions = list(captions)
    made, decoded = [], []
    with torch.inference_mode():
        for first in track(range(0, SCORED, BATCH), "generate"):
            texts = [caption.text for caption in captions[first : first + BATCH]]
            made.append(magnet.generate(texts, seed=seed, first_index=first).numpy())
            batch = torch.from_numpy(np.stack(real[first : first + BATCH]))
            decoded.append(magnet.codec.decode(magnet.codec.encode(batch)).numpy())
    sound = np.concatenate(made)
    return {
        "clips": SCORED,
        "sides": sides(captions, sound),
        "accuracy": score(captions, sound),
        "ceiling": score(captions, np.concatenate(decoded)),
        "swapped": score(captions, sound[:, ::-1]),
        "chance": {
            side: chance(_half(captions, channel), read_clips(sound[:, channel]))
            for channel, side in enumerate(SIDES)
        },
    }


def _half(captions: list[Caption], channel: int) -> list[Caption]:
    return [Caption(caption.text, (caption.events[channel],)) for caption in captions]


def main() -> None:
    """Train, generate, measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for shards and the run")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "stereo.json")
    args = parser.parse_args()
    train = make_shards(args.work, TRAINING, "train")
    validation = make_shards(args.work, VALIDATION, "validation")
    run = args.work / f"run-{args.steps}-{args.seed}"
    options = {
        "run": run,
        "data.shards": train,
        "data.val_shards": validation,
        "trainer.max_steps": args.steps,
    }
    options |= {"seed_everything": args.seed, "data.seed": args.seed}
    words = ["fit", *config_words(TEXT), *option_words(options | SETTINGS)]
    if not (run / "last.ckpt").exists():
        print("$ magnet-train", shlex.join(words), flush=True)
        command(*words)
    measured = measure(Magnet.from_pretrained(run / "last.ckpt"), args.seed)
    print(json.dumps(measured, indent=1))
    write_json(args.out, {"machine": hardware(), "steps": args.steps, "seed": args.seed, **measured})


if __name__ == "__main__":
    main()
