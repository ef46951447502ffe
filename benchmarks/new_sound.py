"""Measure how well fine-tuning teaches a model a new sound, and what the model loses by it.

    python benchmarks/new_sound.py --work runs/new_sound

Two new sounds, each with a base that never had it. "breakbeat": the base learns the drums of the quickstart without
one of the four patterns, so all that is new is how the drums are played. "bass": the base learns the drums alone, so the
tokens of the new sound are new to it, too. Both bases have all words in their vocabulary, as a pretrained text encoder
would. Models are then fine-tuned on clips of the new sound, and the oracle hears captions of the new and of the old.
Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from scaling import CLIPS_PER_MINUTE, CONFIGS, generate

from harness.quickstart_world import RESULTS, command, hardware, option_words, wilson, write_json
from magnet_train import Magnet
from magnet_train.apps.quickstart.drums_and_bass.captions import ATTRIBUTES, Caption, Score
from magnet_train.apps.quickstart.drums_and_bass.oracle import read_clips
from magnet_train.apps.quickstart.drums_and_bass.world import DrumsAndBassWorld, play
from magnet_train.audio import encode_wav
from magnet_train.text.vocabulary import learn_words

SEED = 0
BASE_CLIPS, VALIDATION = 600, 60  # clips that a base learns, and that it is validated on
TEST = {"new": 60, "old": 90}  # captions
PASSES = (8, 1, 1, 1)  # as good as more of them, see decoding.py
BASE_STEPS = {"breakbeat": 500, "bass": 1000}


@dataclass(frozen=True)
class Tuning:
    """What a model is fine-tuned on."""

    sound: str = "breakbeat"
    minutes: int = 10  # of the new sound
    steps: int = 450
    mixed: bool = False  # with as many clips of the old sounds
    full: bool = False  # all weights instead of an adapter

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        kind = "-full" * self.full + "-mixed" * self.mixed
        return f"{self.sound}-{self.minutes}-steps{self.steps}{kind}"


# Each with the strengths that are heard.
TUNINGS: dict[Tuning, tuple[float, ...]] = {
    Tuning(): (1.0, 0.5, 0.75, 1.5),
    Tuning(mixed=True): (1.0,),
    Tuning("bass"): (1.0,),
    Tuning(steps=150): (1.0,),
    Tuning(minutes=1, mixed=True): (1.0,),
    Tuning(minutes=1): (1.0,),
    Tuning("bass", full=True): (1.0,),
}


def captions_of(sound: str, kind: str, split: str, count: int) -> list[Caption]:
    """Return the first captions of the new sound or of the old ones."""
    new = kind == "new"
    found = DrumsAndBassWorld(SEED).captions(15 * count, split)
    if sound == "bass":
        found = [caption for caption in found if caption.score.parts == ("bass" if new else "drums")]
    else:
        drums = [caption for caption in found if caption.score.parts == "drums"]
        found = [caption for caption in drums if (caption.score.pattern == sound) == new]
    return found[:count]


def make_shards(work: Path, sound: str, kind: str, split: str, count: int) -> Path:
    """Write and tokenize clips, unless an earlier run has."""
    audio, shards = (work / folder / f"{sound}-{kind}-{split}-{count}" for folder in ("audio", "shards"))
    if not (shards / "manifest.json").exists():
        audio.mkdir(parents=True, exist_ok=True)
        for index, caption in enumerate(captions_of(sound, kind, split, count)):
            clip = play(caption.score, np.random.default_rng([SEED, index]))
            path = audio / f"{kind}-{index:05d}.wav"
            path.write_bytes(encode_wav(clip, DrumsAndBassWorld.sample_rate))
            path.with_suffix(".json").write_text(json.dumps(caption.to_dict()), encoding="utf-8")
        command("tokenize", "--audio", str(audio), "--out", str(shards), "--codec", "drums_and_bass")
    return shards


def fit(folder: Path, configs: Sequence[str], steps: int, options: dict[str, object]) -> Path:
    """Train for some steps, unless an earlier run has; return the checkpoint."""
    if not (folder / "minutes").exists():
        started = time.monotonic()
        common: dict[str, object] = {
            "run": folder,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": min(steps, 150),
            "trainer.enable_progress_bar": "false",
        }
        words = [word for config in (*CONFIGS, *configs) for word in ("-c", f"configs/{config}.yaml")]
        command("fit", *words, *option_words(common | options))
        (folder / "minutes").write_text(f"{(time.monotonic() - started) / 60:.2f}", encoding="utf-8")
    return folder / "last.ckpt"


def train_base(work: Path, sound: str) -> Path:
    """Train the model that lacks a sound."""
    words = learn_words((caption.text for caption in DrumsAndBassWorld(SEED).captions(1000)), "the band")
    text = {
        "class_path": "magnet_train.text.WordText",
        "init_args": {"tokenizer": "captions", "dim": 128, "words": words},
    }
    options: dict[str, object] = {
        "data.shards": make_shards(work, sound, "old", "train", BASE_CLIPS),
        "data.val_shards": make_shards(work, sound, "old", "validation", VALIDATION),
        "model.text": json.dumps(text),
    }
    return fit(work / f"{sound}-base", (), BASE_STEPS[sound], options)


def tune(work: Path, base: Path, tuning: Tuning) -> Path:
    """Fine-tune with the command of a user."""
    clips = round(tuning.minutes * CLIPS_PER_MINUTE)
    shards = {str(make_shards(work, tuning.sound, "new", "train", clips)): 1}
    if tuning.mixed:
        shards[str(make_shards(work, tuning.sound, "old", "train", clips))] = 1
    options: dict[str, object] = {"init_from": base, "data.shards": json.dumps(shards)}
    if tuning.full:
        options["model.optimizer.init_args.lr"] = (
            2e-4  # a tenth of the base's, as in full.yaml of its models'
        )
    return fit(
        work / tuning.name, ("finetune/full" if tuning.full else "finetune/lora",), tuning.steps, options
    )


def score_model(magnet: Magnet, sound: str) -> dict[str, Any]:
    """Return for new and old captions how often each attribute, and all of a clip, is right, and by chance."""
    decoding = replace(magnet.decoding, decoding_steps=PASSES)
    measured: dict[str, Any] = {}
    for kind, count in TEST.items():
        captions = captions_of(sound, kind, "test", count)
        heard = read_clips(generate(magnet, captions, SEED, decoding=decoding))
        turns = [shares(captions[n:] + captions[:n], heard) for n in range(1, count)]
        right = shares(captions, heard)
        measured[kind] = {
            "right": right,
            "interval": wilson(right["whole clip"], count),
            "chance": {name: round(mean(turn[name] for turn in turns), 4) for name in right},
        }
    return measured


def shares(captions: Sequence[Caption], heard: Sequence[Score]) -> dict[str, float]:
    """Return how often each attribute that the captions have is right, and the whole clip."""
    pairs = [(caption.score, score) for caption, score in zip(captions, heard, strict=True)]
    names = [name for name in ATTRIBUTES if getattr(pairs[0][0], name)]
    right = {name: mean(getattr(a, name) == getattr(b, name) for a, b in pairs) for name in names}
    right["whole clip"] = mean(a == b for a, b in pairs)
    return {name: round(value, 4) for name, value in right.items()}


def rows_of(work: Path, base: Path, tuning: Tuning, strengths: Sequence[float]) -> list[dict[str, Any]]:
    """Fine-tune and score at each strength; 0 is the base, which is scored for strengths of (0,)."""
    checkpoint = tune(work, base, tuning) if any(strengths) else base
    minutes = float((checkpoint.parent / "minutes").read_text(encoding="utf-8"))
    rows = []
    for strength in strengths:
        scores = checkpoint.parent / f"scores-{strength:g}.json"
        if not scores.exists():
            magnet = Magnet.from_pretrained(checkpoint if tuning.full else base)
            if strength and not tuning.full:
                magnet.load_adapter(checkpoint, strength)
            scores.write_text(json.dumps(score_model(magnet, tuning.sound)), encoding="utf-8")
        row = asdict(tuning) | {"strength": strength, "fit_minutes": minutes}
        rows.append(row | json.loads(scores.read_text(encoding="utf-8")))
    return rows


def main() -> None:
    """Train the bases and fine-tune them, and rewrite the record after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/new_sound"), help="folder of clips and runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "new_sound.json", help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for tuning, strengths in TUNINGS.items():
        base = train_base(args.work, tuning.sound)
        if not any(row["sound"] == tuning.sound for row in rows):
            rows += rows_of(args.work, base, Tuning(tuning.sound, 0, 0), (0.0,))
        rows += rows_of(args.work, base, tuning, strengths)
        write_json(
            args.out, {"hardware": hardware(), "base_steps": BASE_STEPS, "captions": TEST, "rows": rows}
        )
        for row in rows[-len(strengths) :]:
            right = {kind: (row[kind]["right"]["whole clip"], row[kind]["interval"]) for kind in TEST}
            print(tuning.name, row["strength"], json.dumps(right), flush=True)


if __name__ == "__main__":
    main()
