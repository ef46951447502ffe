"""Compare temperatures, guidance, arrangements and passes of decoding on the quickstart's band.

    magnet-train quickstart --out runs/quickstart
    python benchmarks/decoding.py --model runs/quickstart/run/last.ckpt

One frozen model decodes the same captions with the same seeds; each row changes one thing of the settings that the model
has. The oracle hears the clips; each row is compared with the model's own settings, clip by clip. Likeness is the share of
frames with the same token of the first codebook in clips of one caption and different seeds: a decoding that always makes
the same clip could score well. benchmarks/arrangements.py does the same in the world of tones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from arrangements import ALIKE, alike
from rich.progress import track
from scaling import generate

from harness.quickstart_world import RESULTS, hardware, write_json
from magnet_train import DecodingConfig, Magnet
from magnet_train.apps.quickstart.band.captions import Caption
from magnet_train.apps.quickstart.band.oracle import accuracy, read_clips
from magnet_train.apps.quickstart.band.world import BandWorld

# Each row's changes of the model's own settings.
WAYS: dict[str, dict[str, Any]] = {
    "own": {},
    "temperature .7": {"temperature": 0.7},
    "temperature 1.3": {"temperature": 1.3},
    "temperature 3, falling": {"temperature": 3.0, "anneal_temperature": True},
    "no guidance": {"max_cfg_coef": 1.0},
    "guidance 3, falling": {"max_cfg_coef": 3.0},
    "guidance 2, constant": {"max_cfg_coef": 2.0, "min_cfg_coef": 2.0},
    "guidance 2, rising": {"max_cfg_coef": 1.0, "min_cfg_coef": 2.0},
    "spread": {"span_arrangement": "spread"},
    "stride1": {"span_arrangement": "stride1"},
    "8 2 2 2 passes": {"decoding_steps": (8, 2, 2, 2)},
    "8 1 1 1 passes": {"decoding_steps": (8, 1, 1, 1)},
    "16 1 1 1 passes": {"decoding_steps": (16, 1, 1, 1)},
    "4 1 1 1 passes": {"decoding_steps": (4, 1, 1, 1)},
    "32 8 8 8 passes": {"decoding_steps": (32, 8, 8, 8)},
    "spread, 16 1 1 1 passes": {"span_arrangement": "spread", "decoding_steps": (16, 1, 1, 1)},
    "spread, 8 1 1 1 passes": {"span_arrangement": "spread", "decoding_steps": (8, 1, 1, 1)},
}


def whole_clips(captions: Sequence[Caption], clips: Sequence[Any]) -> tuple[list[bool], dict[str, float]]:
    """Return which clips play all of their caption, and how often each attribute is right."""
    heard = read_clips(clips)
    right = [caption.score == score for caption, score in zip(captions, heard, strict=True)]
    return right, accuracy(captions, heard)


def likeness(magnet: Magnet, captions: Sequence[Caption], decoding: DecodingConfig) -> float:
    """Return the likeness of clips of one caption, mean over captions."""
    texts = [caption.text for caption in captions[: ALIKE[0]] for _ in range(ALIKE[1])]
    tokens = magnet.generate_tokens(texts, seed=0, decoding=decoding)[:, 0]
    return mean(alike(part) for part in tokens.split(ALIKE[1]))


def main() -> None:
    """Decode in each way, and rewrite the record after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint of a quickstart run")
    parser.add_argument(
        "--clips", type=int, default=120, help="captions, seen and unseen each (default: 120)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "decoding.json", help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    magnet, world = Magnet.from_pretrained(args.model), BandWorld()
    captions = world.captions(args.clips, "test") + world.captions(args.clips, "test", unseen=True)
    rows: list[dict[str, Any]] = []
    own: list[bool] = []
    for way, changes in track(WAYS.items(), "decode"):
        decoding = replace(magnet.decoding, **changes)
        right, scores = whole_clips(captions, generate(magnet, captions, 0, decoding=decoding))
        own = own or right
        gains = [int(ours) - int(theirs) for ours, theirs in zip(right, own, strict=True)]
        row = {
            "way": way,
            "passes": sum(decoding.decoding_steps),
            "whole clip": mean(right),
            "gain": mean(gains),
        }
        row["interval"] = 1.96 * stdev(gains) / len(gains) ** 0.5
        row["likeness"] = likeness(magnet, captions, decoding)
        rows.append(
            {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
        )
        rows[-1]["accuracy"] = {name: round(value, 4) for name, value in scores.items()}
        record = {"hardware": hardware(), "model": magnet.training, "own": repr(magnet.decoding)}
        write_json(args.out, {**record, "clips": len(captions), "rows": rows})
    for row in rows:
        print(
            f"{row['way']:24s} {row['passes']:3d} passes  whole clip {row['whole clip']:.3f}  gain {row['gain']:+.3f} "
            f"+- {row['interval']:.3f}  likeness {row['likeness']:.2f}"
        )


if __name__ == "__main__":
    main()
