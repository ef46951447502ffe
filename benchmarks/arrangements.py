"""Compare span arrangements and temperatures of decoding, at several numbers of steps.

    python benchmarks/tones.py --out runs/full --preset full   # 46 minutes on one thread
    python benchmarks/arrangements.py --model runs/full/run/last.ckpt --preset full

One frozen model decodes the same captions with the same seeds; only the decoding differs. The oracle reads the clips, and
each decoding is compared with the model's own settings, clip by clip. A decoding that always makes the same clip could
score well, so the likeness of clips with the same caption and different seeds is measured too: the share of frames with
the same token of the first codebook, for real clips as well.

For "spread" there is a second measure without an oracle: the exact log-likelihood of real clips under the decoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from harness.quickstart_world import RESULTS, generate_and_read, hardware, scores, whole_clips, write_json
from harness.tones.captions import Caption
from harness.tones.oracle import Readings
from harness.tones.world import PRESETS, ToneWorld
from magnet_train import DecodingConfig, Magnet
from magnet_train.decoding import log_likelihood

BATCH = 40  # clips decoded at a time
STEPS = {22: (10, 4, 4, 4), 11: (5, 2, 2, 2), 6: (3, 1, 1, 1)}
LIKELIHOOD_STEPS = {**STEPS, 4: (1, 1, 1, 1), 48: (24, 8, 8, 8)}
ALIKE = (4, 12)  # captions, clips of each
# Arrangement and temperature; None is that of the released models, annealed from 3 to 0.
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


def alike(tokens: Tensor) -> float:
    """Return the share of equal tokens over all pairs of clips int64 [B, T], 0..1."""
    same = (tokens[:, None] == tokens[None]).float().mean(dim=-1)
    return float((same.sum() - len(tokens)) / (len(tokens) * (len(tokens) - 1)))


def likeness(magnet: Magnet, captions: Sequence[Caption], decoding: DecodingConfig) -> float:
    """Return the likeness of clips of one caption, mean over captions; see `alike`."""
    texts = [caption.text for caption in captions for _ in range(ALIKE[1])]
    tokens = magnet.generate_tokens(texts, seed=0, decoding=decoding)[:, 0]
    return mean(alike(part) for part in tokens.split(ALIKE[1]))


def likeness_of_real(magnet: Magnet, world: ToneWorld, captions: Sequence[Caption]) -> float:
    """Return the likeness of real clips of one caption."""
    rng = np.random.default_rng(0)
    clips = [world.render(caption.events, rng) for caption in captions for _ in range(ALIKE[1])]
    tokens = magnet.codec.encode(torch.from_numpy(np.stack(clips))[:, None])[:, 0]
    return mean(alike(part) for part in tokens.split(ALIKE[1]))


def likelihood(magnet: Magnet, world: ToneWorld, captions: Sequence[Caption], steps: int) -> dict[str, Any]:
    """Return the negative log-likelihood of real clips, nats a frame: mean, standard error, and by codebook."""
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
    """Return the gain in whole clips over `base`, with the half width of its 95 % interval."""
    gains = [
        whole_clips([caption], [reading]) - whole_clips([caption], [other])
        for caption, reading, other in zip(captions, readings, base, strict=True)
    ]
    return {"gain": mean(gains), "interval": 1.96 * stdev(gains) / len(gains) ** 0.5}


def main() -> None:
    """Decode in each way, and rewrite the record after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint of benchmarks/tones.py")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="full", help="the world that the model was trained on"
    )
    parser.add_argument(
        "--clips", type=int, default=320, help="captions, seen and unseen each (default: 320)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "arrangements.json", help="JSON file to write")
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
                readings = generate_and_read(magnet, captions, batch=BATCH, decoding=decoding)
                base = base or readings
                row = {"way": way, "steps": steps, **scores(captions, readings)}
                row |= compare(captions, readings, base)
                record["rows"].append(row | {"likeness": likeness(magnet, seen[: ALIKE[0]], decoding)})
                write_json(args.out, record)
                progress.advance(task)
    for steps, found in record["likelihood"].items():
        print(f"{steps:3d} steps  {found['nats']:.3f} +- {found['error']:.3f} nats a frame of real clips")
    for row in record["rows"]:
        numbers = " ".join(f"{row[name]:6.3f}" for name in row if name not in ("way", "steps"))
        print(f"{row['steps']:3d} steps  {row['way']:16s} {numbers}")


if __name__ == "__main__":
    main()
