"""Measure how well a LoRA adapter teaches a small model captions that were held out of its training.

    python benchmarks/lora.py --work runs/lora

A base model learns the tones without six of its 75 combinations of note, timbre and rhythm. An adapter is
then trained on clips of those six only. Before and after, the oracle reads clips of new captions of both kinds. Results
of earlier runs are reused, so the base can also be one of `ablations.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from ablations import base_fit_words

import magnet_train
from harness.quickstart_world import (
    RESULTS,
    command,
    config_words,
    generate_and_read,
    hardware,
    make_world_shards,
    option_words,
    scores,
    tokenize,
    write_json,
)
from harness.tones.world import SAMPLE_RATE, ToneWorld

SEED = 0
FINE_TUNING = 240  # clips of the six combinations, 5 minutes of audio
SEEN, UNSEEN = 120, 96  # test captions of combinations that the base's training had, and of the six


def train_base(work: Path, steps: int) -> Path:
    """Train the base, unless an earlier run has."""
    checkpoint = work / f"base-{steps}-{SEED}" / "last.ckpt"
    if not checkpoint.exists():
        make_world_shards(work)
        command("fit", *base_fit_words(work, checkpoint.parent, SEED, steps))
    return checkpoint


def train_adapter(work: Path, base: Path, steps: int) -> Path:
    """Write clips of the held-out combinations, and train an adapter on them with the commands of a user."""
    audio, shards, run = work / "audio" / "unseen", work / "shards" / "unseen", work / f"lora-{steps}"
    if not (shards / "manifest.json").exists():
        audio.mkdir(parents=True, exist_ok=True)
        for index, (caption, clip) in enumerate(ToneWorld().clips(FINE_TUNING, "train", unseen=True)):
            file = audio / f"unseen-{index:05d}.wav"
            soundfile.write(file, clip, SAMPLE_RATE, subtype="PCM_16")
            file.with_suffix(".json").write_text(json.dumps(caption.to_dict()), encoding="utf-8")
        tokenize(audio, shards)
    if not (run / "last.ckpt").exists():
        options = {
            "init_from": base,
            "data.shards": shards,
            "run": run,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": steps,
            "trainer.enable_progress_bar": "false",
        }
        command("fit", *config_words("configs/finetune/lora.yaml"), *option_words(options))
    return run / "last.ckpt"


def score_model(model: Path) -> dict[str, float]:
    """Generate test captions, and return how often each attribute, and the whole clip, is right (0..1)."""
    magnet = magnet_train.Magnet.from_pretrained(model)
    measured = {}
    for kind, count in (("unseen", UNSEEN), ("seen", SEEN)):
        captions = ToneWorld().captions(count, "test", unseen=kind == "unseen")
        for name, value in scores(captions, generate_and_read(magnet, captions, SEED)).items():
            measured[f"{kind}_{name}"] = round(value, 4)
    return measured


def main() -> None:
    """Train both, score them, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/lora"), help="folder of clips and runs")
    parser.add_argument(
        "--base-steps", type=int, default=500, help="training steps of the base (default: 500)"
    )
    parser.add_argument("--steps", type=int, default=450, help="training steps of the adapter (default: 450)")
    parser.add_argument("--out", type=Path, default=RESULTS / "lora.json", help="JSON file to write")
    args = parser.parse_args()
    base = train_base(args.work, args.base_steps)
    began = time.monotonic()
    adapter = train_adapter(args.work, base, args.steps)
    minutes = (time.monotonic() - began) / 60
    record: dict[str, Any] = {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "base_steps": args.base_steps,
        "adapter_steps": args.steps,
        "adapter_minutes": round(minutes, 2),
        "fine_tuning_clips": FINE_TUNING,
        "captions": {"unseen": UNSEEN, "seen": SEEN},
        "before": score_model(base),
        "after": score_model(adapter),
    }
    write_json(args.out, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
