"""Does a LoRA adapter teach the quickstart model captions that it never saw?

    python benchmarks/lora.py --work runs/lora

A base model learns the quickstart world without six of its 75 combinations of note, timbre and rhythm. An adapter
is then trained on clips of those six alone, and the oracle listens to captions of both kinds that neither training
had, before and after. What has been made already is used again, so that the base may also be one of `ablations.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from ablations import BATCH, CONFIGS, command, fit_options, hardware, make_shards, whole_clips

import magnet_train
from magnet_train.apps.quickstart.oracle import Readings, accuracy, read_clips
from magnet_train.apps.quickstart.world import SAMPLE_RATE, ToneWorld

RESULTS = Path(__file__).parent / "results" / "lora.json"
SEED = 0
FINE_TUNING = 240  # clips of the six combinations, 5 minutes of audio
SEEN, UNSEEN = 120, 96  # test captions of combinations that the base's training had, and of the six


def train_base(work: Path, steps: int) -> Path:
    """Train the base, unless it is there."""
    checkpoint = work / f"base-{steps}-{SEED}" / "last.ckpt"
    if not checkpoint.exists():
        make_shards(work)
        command("fit", *fit_options(work, checkpoint.parent, "base", SEED, steps))
    return checkpoint


def train_adapter(work: Path, base: Path, steps: int) -> Path:
    """Make clips of what the base never saw, and train an adapter on them as a user would."""
    audio, shards, run = work / "audio" / "unseen", work / "shards" / "unseen", work / f"lora-{steps}"
    if not (shards / "manifest.json").exists():
        audio.mkdir(parents=True, exist_ok=True)
        for index, (caption, clip) in enumerate(ToneWorld().clips(FINE_TUNING, "train", unseen=True)):
            file = audio / f"unseen-{index:05d}.wav"
            soundfile.write(file, clip, SAMPLE_RATE, subtype="PCM_16")
            file.with_suffix(".json").write_text(json.dumps(caption.to_dict()), encoding="utf-8")
        command("tokenize", "--audio", str(audio), "--out", str(shards), "--codec", "quickstart")
    if not (run / "last.ckpt").exists():
        configs = [word for config in (*CONFIGS, "configs/finetune/lora.yaml") for word in ("-c", config)]
        options = ["--init_from", str(base), "--data.shards", str(shards), "--run", str(run)]
        length = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)]
        command("fit", *configs, *options, *length, "--trainer.enable_progress_bar", "false")
    return run / "last.ckpt"


def scores(model: Path) -> dict[str, float]:
    """Generate test captions and return how often each attribute, and the whole clip, is right (0..1)."""
    magnet = magnet_train.Magnet.from_pretrained(model)
    measured = {}
    for kind, count in (("unseen", UNSEEN), ("seen", SEEN)):
        captions = ToneWorld().captions(count, "test", unseen=kind == "unseen")
        readings: Readings = []
        for first in range(0, count, BATCH):
            texts = [caption.text for caption in captions[first : first + BATCH]]
            readings += read_clips(magnet.generate(texts, seed=SEED + first)[:, 0].numpy())
        for attribute, value in accuracy(captions, readings).items():
            measured[f"{kind}_{attribute}"] = round(value, 4)
        measured[f"{kind}_whole"] = round(whole_clips(captions, readings), 4)
    return measured


def main() -> None:
    """Run it and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/lora"), help="folder for clips and runs")
    parser.add_argument(
        "--base-steps", type=int, default=500, help="training steps of the base (default: 500)"
    )
    parser.add_argument("--steps", type=int, default=450, help="training steps of the adapter (default: 450)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the record goes")
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
        "before": scores(base),
        "after": scores(adapter),
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
