"""How many steps does a clip take, by the order in which its frames are filled?

    magnet-train quickstart --preset full --out runs/full      # 46 minutes on one thread
    python benchmarks/arrangements.py --model runs/full/run/last.ckpt --preset full

One frozen model decodes the same captions with the same seeds in each way; only decoding differs. The oracle listens,
and each way is compared with the model's own settings, clip by clip. A way of decoding that always makes the same clip
would be often right, so beside it stands how alike clips are that share a caption and differ in their seed: the share of
frames with the same token of the first codebook, for real clips as well.

For "spread" there is a second opinion without an oracle: the exact log-likelihood of real clips under the decoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from ablations import hardware, whole_clips
from rich.progress import Progress
from torch import Tensor

from magnet_train import DecodingConfig, Magnet
from magnet_train.apps.quickstart.captions import Caption
from magnet_train.apps.quickstart.oracle import Readings, accuracy, read_clips
from magnet_train.apps.quickstart.world import PRESETS, ToneWorld
from magnet_train.decoding import log_likelihood

RESULTS = Path(__file__).parent / "results" / "arrangements.json"
BATCH = 40  # clips decoded at a time
STEPS = {22: (10, 4, 4, 4), 11: (5, 2, 2, 2), 6: (3, 1, 1, 1)}
LIKELIHOOD_STEPS = {**STEPS, 4: (1, 1, 1, 1), 48: (24, 8, 8, 8)}
ALIKE = (4, 12)  # captions, clips of each
# None: that of the released models, 3 falling to 0.
WAYS: dict[str, tuple[str, float | None]] = {
    "nonoverlap": ("nonoverlap", None),
    "nonoverlap, T 1": ("nonoverlap", 1.0),
    "stride1, T 1": ("stride1", 1.0),
    "spread": ("spread", None),
    "spread, T 1": ("spread", 1.0),
}


def settings(own: DecodingConfig, way: str) -> DecodingConfig:
    """Return the model's own settings with another arrangement and temperature."""
    arrangement, temperature = WAYS[way]
    decoding = replace(own, span_arrangement=arrangement)
    if temperature is None:
        return replace(decoding, temperature=3.0, anneal_temperature=True)
    return replace(decoding, temperature=temperature, anneal_temperature=False)


def listen(magnet: Magnet, captions: Sequence[Caption], decoding: DecodingConfig) -> Readings:
    """Make a clip for each caption and return what the oracle hears."""
    readings: Readings = []
    for first in range(0, len(captions), BATCH):
        texts = [caption.text for caption in captions[first : first + BATCH]]
        readings += read_clips(magnet.generate(texts, seed=first, decoding=decoding)[:, 0].numpy())
    return readings


def alike(tokens: Tensor) -> float:
    """Return the share of equal tokens, 0..1, over all pairs of the clips int64 [B, T]."""
    same = (tokens[:, None] == tokens[None]).float().mean(dim=-1)
    return float((same.sum() - len(tokens)) / (len(tokens) * (len(tokens) - 1)))


def likeness(magnet: Magnet, captions: Sequence[Caption], decoding: DecodingConfig) -> float:
    """Return how alike clips of one caption are in the first codebook, mean over captions."""
    texts = [caption.text for caption in captions for _ in range(ALIKE[1])]
    tokens = magnet.generate_tokens(texts, seed=0, decoding=decoding)[:, 0]
    return mean(alike(part) for part in tokens.split(ALIKE[1]))


def likeness_of_real(magnet: Magnet, world: ToneWorld, captions: Sequence[Caption]) -> float:
    """Return the same of clips that the world makes."""
    rng = np.random.default_rng(0)
    clips = [world.render(caption.events, rng) for caption in captions for _ in range(ALIKE[1])]
    tokens = magnet.codec.encode(torch.from_numpy(np.stack(clips))[:, None])[:, 0]
    return mean(alike(part) for part in tokens.split(ALIKE[1]))


def likelihood(magnet: Magnet, world: ToneWorld, captions: Sequence[Caption], steps: int) -> dict[str, Any]:
    """Return the nats a frame of real clips, mean and standard error, and by codebook."""
    rng = np.random.default_rng(1)
    clips = torch.from_numpy(np.stack([world.render(caption.events, rng) for caption in captions]))
    decoding = replace(
        settings(magnet.decoding, "spread, T 1"),
        decoding_steps=LIKELIHOOD_STEPS[steps],
        top_p=0.0,
        max_cfg_coef=1.0,
    )
    parts = []
    for first in range(0, len(captions), BATCH):
        tokens = magnet.codec.encode(clips[first : first + BATCH, None])
        logits = magnet.logits_fn([caption.text for caption in captions[first : first + BATCH]])
        generator = torch.Generator().manual_seed(first)
        nats = log_likelihood(logits, tokens, decoding, card=magnet.lm.card, generator=generator)
        parts.append(-nats / tokens.shape[-1])
    nats = torch.cat(parts)  # [clips, K]
    whole = nats.sum(dim=-1)
    return {
        "nats": float(whole.mean()),
        "error": float(whole.std() / len(whole) ** 0.5),
        "by_codebook": nats.mean(dim=0).tolist(),
    }


def compare(captions: Sequence[Caption], readings: Readings, base: Readings) -> dict[str, float]:
    """Return how many more whole clips are right than with `base`, with the half width of a 95 % interval."""
    gains = [
        whole_clips([caption], [reading]) - whole_clips([caption], [other])
        for caption, reading, other in zip(captions, readings, base, strict=True)
    ]
    return {"gain": mean(gains), "interval": 1.96 * stdev(gains) / len(gains) ** 0.5}


def main() -> None:
    """Decode in every way and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint of a quickstart run")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="full", help="the world it learned")
    parser.add_argument(
        "--clips", type=int, default=320, help="captions, as many again of unseen pairs (default: 320)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the record goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    magnet, world = Magnet.from_pretrained(args.model), ToneWorld(args.preset)
    seen = world.captions(args.clips, "test")
    captions = seen + world.captions(args.clips, "test", unseen=True)
    record: dict[str, Any] = {
        "hardware": hardware(),
        "model": magnet.training,
        "own": repr(magnet.decoding),
        "clips": len(captions),
        "real_likeness": likeness_of_real(magnet, world, seen[: ALIKE[0]]),
        "likelihood": {steps: likelihood(magnet, world, seen, steps) for steps in sorted(LIKELIHOOD_STEPS)},
        "rows": [],
    }
    base: Readings = []
    with Progress() as progress:
        task = progress.add_task("decode", total=len(WAYS) * len(STEPS))
        for steps in STEPS:
            for way in WAYS:
                decoding = replace(settings(magnet.decoding, way), decoding_steps=STEPS[steps])
                readings = listen(magnet, captions, decoding)
                base = base or readings
                record["rows"].append(
                    {
                        "way": way,
                        "steps": steps,
                        **accuracy(captions, readings),
                        "whole": whole_clips(captions, readings),
                        **compare(captions, readings, base),
                        "likeness": likeness(magnet, seen[: ALIKE[0]], decoding),
                    }
                )
                args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                progress.advance(task)
    for steps, found in record["likelihood"].items():
        print(f"{steps:3d} steps  {found['nats']:.3f} +- {found['error']:.3f} nats a frame of real clips")
    for row in record["rows"]:
        numbers = " ".join(f"{row[name]:6.3f}" for name in row if name not in ("way", "steps"))
        print(f"{row['steps']:3d} steps  {row['way']:16s} {numbers}")


if __name__ == "__main__":
    main()
