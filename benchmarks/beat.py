"""Measure the rhythm of loops and long clips against straight clips of the same captions.

    python benchmarks/beat.py --model runs/tones/run/last.ckpt --preset default
    python benchmarks/beat.py --model runs/full/run/last.ckpt --preset full

Accuracy: the share of the oracle's windows with the caption's pitch, timbre and rhythm. Evenness: the share of intervals
between pulses with the caption's length; loops are read twice in a row, so that the seam counts. Jump: the step from a
loop's last sample to its first over the mean step. The ceiling is real clips through the codec; repeated, their seam is
not closed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.quickstart_world import RESULTS, hardware, write_json
from harness.tones.captions import Caption
from harness.tones.oracle import accuracy, evenness, read_clips
from harness.tones.world import PRESETS, ToneWorld
from magnet_train import Magnet
from magnet_train.codecs.chunked import decode_loop

LONG = 4  # times the model's clips


def captions_of_one_event(world: ToneWorld, count: int) -> list[Caption]:
    """Return captions of one event: those of two do not describe a clip that is repeated or longer."""
    return [caption for caption in world.captions(4 * count, "test") if len(caption.events) == 1][:count]


def scores(captions: list[Caption], audio: Tensor, repeated: bool) -> dict[str, Any]:
    """Return accuracy and evenness of clips [B, channels, samples]."""
    clips = list(audio[:, 0].numpy())
    in_a_row = [np.concatenate([clip, clip]) for clip in clips] if repeated else clips
    return {
        "accuracy": {name: round(share, 3) for name, share in accuracy(captions, read_clips(clips)).items()},
        "evenness": round(evenness(captions, in_a_row), 3),
    }


def jump(audio: Tensor) -> float:
    """Return the mean step from the last sample to the first over the mean step between two samples."""
    step = (audio[:, 0, 0] - audio[:, 0, -1]).abs() / audio[:, 0].diff().abs().mean(-1)
    return round(float(step.mean()), 2)


def measure(magnet: Magnet, preset: str, count: int) -> dict[str, Any]:
    """Generate straight clips, loops and long clips, and return their scores."""
    world = ToneWorld(preset)
    captions = captions_of_one_event(world, count)
    texts = [caption.text for caption in captions]
    rng = np.random.default_rng(0)
    real = torch.stack([torch.from_numpy(world.render(caption.events, rng)) for caption in captions])[:, None]
    through_codec = magnet.codec.decode(magnet.codec.encode(real))
    straight = magnet.generate_tokens(texts, seed=0)
    loop = magnet.generate_tokens(texts, seed=0, loop=True)
    long = magnet.generate_tokens(texts, LONG * magnet.segment_duration, seed=0)
    decode = magnet.codec.decode
    return {
        "clips": count,
        "ceiling": scores(captions, through_codec, repeated=False),
        "ceiling, repeated": scores(captions, through_codec, repeated=True),
        "straight": scores(captions, decode(straight), repeated=False),
        "straight, repeated": scores(captions, decode(straight), repeated=True)
        | {"jump": jump(decode(straight))},
        "loop": scores(captions, decode_loop(magnet.codec, loop), repeated=True)
        | {"jump": jump(decode_loop(magnet.codec, loop))},
        "long": scores(captions, decode(long), repeated=False),
    }


def main() -> None:
    """Measure a model, and add it to the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint of benchmarks/tones.py")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="default",
        help="the world that the model was trained on (default: %(default)s)",
    )
    parser.add_argument("--clips", type=int, default=120, help="clips of each kind (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "beat.json", help="JSON file to update (default: %(default)s)"
    )
    args = parser.parse_args()
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    record[args.preset] = {
        "hardware": hardware(),
        **measure(Magnet.from_pretrained(args.model), args.preset, args.clips),
    }
    write_json(args.out, record)
    print(json.dumps(record[args.preset], indent=1))


if __name__ == "__main__":
    main()
