"""Compare temperatures, guidance, arrangements and passes of decoding on the quickstart's drums and bass.

    magnet-train quickstart --out runs/quickstart
    magnet-train export --checkpoint runs/quickstart/run/last.ckpt --out my_model --profile runs/quickstart/shards/validation
    python benchmarks/decoding.py --model my_model

One frozen model decodes the same captions with the same seeds; each row changes one thing of the settings that the model
has. The oracle hears the clips; each row is compared with the model's own settings, clip by clip. Likeness is the share of
frames with the same token of the first codebook in clips of one caption and different seeds: a decoding that always makes
the same clip could score well. The rows "draft", "normal" and "best" are those of `generate --quality`.
benchmarks/arrangements.py does the same in the world of tones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import matplotlib
import torch
from arrangements import ALIKE, alike
from rich.progress import track
from scaling import generate

from harness.quickstart_world import RESULTS, hardware, write_json
from magnet_train import DecodingConfig, Magnet
from magnet_train.apps.quickstart.drums_and_bass.captions import Caption
from magnet_train.apps.quickstart.drums_and_bass.oracle import accuracy, read_clips
from magnet_train.apps.quickstart.drums_and_bass.world import DrumsAndBassWorld
from magnet_train.decoding.config import DecodingStep, decoding_schedule
from magnet_train.decoding.step_profile import LOSS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "passes.png"
LATE = "guidance 2, late"
# Each row's changes of the model's own settings.
WAYS: dict[str, dict[str, Any]] = {
    "own": {},
    **{quality: {} for quality in LOSS},  # the passes of the model's own profile
    "4 1 1 1 passes": {"decoding_steps": (4, 1, 1, 1)},
    "8 1 1 1 passes": {"decoding_steps": (8, 1, 1, 1)},
    "8 2 2 2 passes": {"decoding_steps": (8, 2, 2, 2)},
    "16 1 1 1 passes": {"decoding_steps": (16, 1, 1, 1)},
    "32 8 8 8 passes": {"decoding_steps": (32, 8, 8, 8)},
    "temperature .7": {"temperature": 0.7},
    "temperature 1.3": {"temperature": 1.3},
    "temperature 3, falling": {"temperature": 3.0, "anneal_temperature": True},
    "no guidance": {"max_cfg_coef": 1.0},
    "guidance 3, falling": {"max_cfg_coef": 3.0},
    "guidance 2, constant": {"max_cfg_coef": 2.0, "min_cfg_coef": 2.0},
    "guidance 2, rising": {"max_cfg_coef": 1.0, "min_cfg_coef": 2.0},
    LATE: {"max_cfg_coef": 2.0},  # see `late_guidance`
    "spread": {"span_arrangement": "spread"},
    "stride1": {"span_arrangement": "stride1"},
    "spread, 16 1 1 1 passes": {"span_arrangement": "spread", "decoding_steps": (16, 1, 1, 1)},
    "spread, 8 1 1 1 passes": {"span_arrangement": "spread", "decoding_steps": (8, 1, 1, 1)},
}


def settings(magnet: Magnet, way: str) -> DecodingConfig:
    """Return the model's own settings with a row's changes."""
    if way in LOSS:
        return magnet.decoding_for(way)
    return replace(magnet.decoding, **WAYS[way])


def late_guidance(decoding: DecodingConfig) -> Iterator[DecodingStep]:
    """Yield the passes of `decoding_schedule` with guidance only where less than half of a codebook is masked."""
    for step in decoding_schedule(decoding):
        yield replace(step, cfg_coef=decoding.max_cfg_coef if float(step.mask_rate) < 0.5 else 1.0)


def likeness(magnet: Magnet, captions: Sequence[Caption], decoding: DecodingConfig) -> float:
    """Return the likeness of clips of one caption, mean over captions."""
    texts = [caption.text for caption in captions[: ALIKE[0]] for _ in range(ALIKE[1])]
    tokens = magnet.generate_tokens(texts, seed=0, decoding=decoding)[:, 0]
    return mean(alike(part) for part in tokens.split(ALIKE[1]))


def measure(magnet: Magnet, captions: Sequence[Caption], decoding: DecodingConfig) -> Row:
    """Return which clips play all of their caption, or by chance that of another clip, attributes, and the likeness."""
    heard = read_clips(generate(magnet, captions, 0, decoding=decoding))
    others = [
        caption.score == score
        for i, caption in enumerate(captions)
        for j, score in enumerate(heard)
        if i != j
    ]
    return {
        "passes": list(decoding.decoding_steps),
        "right": [int(caption.score == score) for caption, score in zip(captions, heard, strict=True)],
        "likeness": round(likeness(magnet, captions, decoding), 4),
        "accuracy": {name: round(value, 4) for name, value in accuracy(captions, heard).items()},
        "chance": round(mean(others), 4),
    }


def compare(row: Row, own: Row) -> Row:
    """Return the whole clips that are right, and the gain over the model's own settings with its 95 % interval."""
    gains = [ours - theirs for ours, theirs in zip(row["right"], own["right"], strict=True)]
    interval = 1.96 * stdev(gains) / len(gains) ** 0.5
    return {
        "whole clip": round(mean(row["right"]), 4),
        "gain": round(mean(gains), 4),
        "interval": round(interval, 4),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the likelihood of each codebook, and the whole clips that are right, against passes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    profile = record["model"]["steps_profile"]
    for k, curve in enumerate(profile["nats"]):
        left.plot(
            profile["passes"], [value - min(curve) for value in curve], marker="o", label=f"codebook {k}"
        )
    left.set(xscale="log", xlabel="passes of the codebook", ylabel="nats a frame above the lowest")
    left.set_xticks(profile["passes"], profile["passes"])
    left.legend()
    rows = [row for row in record["rows"] if row["way"] in ("own", *LOSS) or row["way"][0].isdigit()]
    points = {tuple(row["passes"]): row for row in sorted(rows, key=lambda row: sum(row["passes"]))}
    for number, row in enumerate(points.values()):
        right.errorbar(number, row["whole clip"], row["interval"], fmt="o", color="tab:blue", capsize=3)
    names = [f"{sum(passes)}\n" + " ".join(map(str, passes)) for passes in points]
    right.set_xticks(range(len(names)), names, fontsize=7)
    right.set(xlabel="passes of a clip", ylabel="whole clips right", ylim=(0, 1))
    figure.savefig(path, dpi=80)


def main() -> None:
    """Decode in each way, and rewrite the record after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="export of a quickstart run, with its step profile")
    parser.add_argument(
        "--clips", type=int, default=120, help="captions, seen and unseen each (default: 120)"
    )
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), choices=WAYS, help="rows to measure, without a picture"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "decoding.json", help="JSON file to write")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="PNG file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    magnet, world = Magnet.from_pretrained(args.model), DrumsAndBassWorld()
    captions = world.captions(args.clips, "test") + world.captions(args.clips, "test", unseen=True)
    measured: dict[tuple[DecodingConfig, bool], Row] = {}
    record = {"hardware": hardware(), "model": magnet.training, "own": repr(magnet.decoding)}
    rows: list[Row] = []
    for way in track(dict.fromkeys(("own", *args.ways)), "decode"):
        decoding, late = settings(magnet, way), way == LATE
        if (decoding, late) not in measured:
            window = patch("magnet_train.decoding.generate.decoding_schedule", late_guidance)
            with window if late else nullcontext():
                measured[decoding, late] = measure(magnet, captions, decoding)
        row = measured[decoding, late]
        rows.append({"way": way, **row, **compare(row, measured[magnet.decoding, False])})
        write_json(args.out, {**record, "clips": len(captions), "rows": rows})
    if len(rows) == len(WAYS):
        draw({**record, "rows": rows}, args.picture)
    for row in rows:
        print(
            f"{row['way']:24s} {sum(row['passes']):3d} passes  whole clip {row['whole clip']:.3f}  "
            f"gain {row['gain']:+.3f} +- {row['interval']:.3f}  likeness {row['likeness']:.2f}"
        )


if __name__ == "__main__":
    main()
