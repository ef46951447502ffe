"""Measure how well fine-tuning teaches a model a new sound, and what the model loses by it.

    python benchmarks/new_sound.py --work runs/new_sound

Two new sounds, each with a base that never had it. "breakbeat": the base learns the drums of the quickstart without
one of the four patterns, so all that is new is how the drums are played. "bass": the base learns the drums alone, so the
tokens of the new sound are new to it, too. Both bases have all words in their vocabulary, as a pretrained text encoder
would. Models are then fine-tuned on clips of the new sound, and the oracle hears captions of the new and of the old.
A seed has its own base and its own draws of clips and masks; the clips are the same. Finished runs are not repeated, and
rows of other sounds and seeds that the results file has stay in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
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

WORLD = 0  # seed of the clips
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
    found = DrumsAndBassWorld(WORLD).captions(15 * count, split)
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
            clip = play(caption.score, np.random.default_rng([WORLD, index]))
            path = audio / f"{kind}-{index:05d}.wav"
            path.write_bytes(encode_wav(clip, DrumsAndBassWorld.sample_rate))
            path.with_suffix(".json").write_text(json.dumps(caption.to_dict()), encoding="utf-8")
        command("tokenize", "--audio", str(audio), "--out", str(shards), "--codec", "drums_and_bass")
    return shards


def fit(folder: Path, seed: int, configs: Sequence[str], steps: int, options: dict[str, object]) -> Path:
    """Train for some steps, unless an earlier run has; return the checkpoint."""
    if not (folder / "minutes").exists():
        started = time.monotonic()
        common: dict[str, object] = {
            "run": folder,
            "seed_everything": seed,
            "data.seed": seed,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": min(steps, 150),
            "trainer.enable_progress_bar": "false",
        }
        words = [word for config in (*CONFIGS, *configs) for word in ("-c", f"configs/{config}.yaml")]
        command("fit", *words, *option_words(common | options))
        (folder / "minutes").write_text(f"{(time.monotonic() - started) / 60:.2f}", encoding="utf-8")
    return folder / "last.ckpt"


def train_base(work: Path, sound: str, seed: int) -> Path:
    """Train the model that lacks a sound."""
    words = learn_words((caption.text for caption in DrumsAndBassWorld(WORLD).captions(1000)), "the band")
    text = {
        "class_path": "magnet_train.text.WordText",
        "init_args": {"tokenizer": "captions", "dim": 128, "words": words},
    }
    options: dict[str, object] = {
        "data.shards": make_shards(work, sound, "old", "train", BASE_CLIPS),
        "data.val_shards": make_shards(work, sound, "old", "validation", VALIDATION),
        "model.text": json.dumps(text),
    }
    return fit(work / f"seed{seed}" / f"{sound}-base", seed, (), BASE_STEPS[sound], options)


def tune(work: Path, base: Path, tuning: Tuning, seed: int) -> Path:
    """Fine-tune with the command of a user."""
    clips = round(tuning.minutes * CLIPS_PER_MINUTE)
    shards = {str(make_shards(work, tuning.sound, "new", "train", clips)): 1}
    if tuning.mixed:
        shards[str(make_shards(work, tuning.sound, "old", "train", clips))] = 1
    options: dict[str, object] = {"init_from": base, "data.shards": json.dumps(shards)}
    if tuning.full:
        options["model.optimizer.init_args.lr"] = 2e-4  # a tenth of the base's
    configs = ("finetune/full" if tuning.full else "finetune/lora",)
    return fit(work / f"seed{seed}" / tuning.name, seed, configs, tuning.steps, options)


def score_model(magnet: Magnet, sound: str, seed: int) -> dict[str, Any]:
    """Return for new and old captions how often each attribute, and all of a clip, is right, and by chance."""
    decoding = replace(magnet.decoding, decoding_steps=PASSES)
    measured: dict[str, Any] = {}
    for kind, count in TEST.items():
        captions = captions_of(sound, kind, "test", count)
        heard = read_clips(generate(magnet, captions, seed, decoding=decoding))
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


def rows_of(work: Path, tuning: Tuning, strengths: Sequence[float], seed: int) -> list[dict[str, Any]]:
    """Fine-tune and score at each strength; 0 is the base, which is scored for strengths of (0,)."""
    base = train_base(work, tuning.sound, seed)
    checkpoint = tune(work, base, tuning, seed) if any(strengths) else base
    minutes = float((checkpoint.parent / "minutes").read_text(encoding="utf-8"))
    rows = []
    for strength in strengths:
        scores = checkpoint.parent / f"scores-{strength:g}.json"
        if not scores.exists():
            magnet = Magnet.from_pretrained(checkpoint if tuning.full else base)
            if strength and not tuning.full:
                magnet.load_adapter(checkpoint, strength)
            scores.write_text(json.dumps(score_model(magnet, tuning.sound, seed)), encoding="utf-8")
        row = asdict(tuning) | {"strength": strength, "seed": seed, "fit_minutes": minutes}
        row["hardware"] = hardware()
        rows.append(row | json.loads(scores.read_text(encoding="utf-8")))
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each tuning and strength which share of whole clips is right, with its interval over captions."""
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    names = (*asdict(Tuning()), "strength")
    for row in rows:
        kinds.setdefault(tuple(row[name] for name in names), []).append(row)
    summary = []
    for values, same in kinds.items():
        entry = dict(zip(names, values, strict=True)) | {"seeds": len(same)}
        for kind, count in TEST.items():
            by_seed = [row[kind]["right"]["whole clip"] for row in same]
            interval = wilson(mean(by_seed), count * len(by_seed))
            entry[kind] = {"whole clip": mean(by_seed), "interval": interval, "by seed": by_seed}
        summary.append(entry)
    return summary


def main() -> None:
    """Train the bases and fine-tune them, and rewrite the record after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/new_sound"), help="folder of clips and runs")
    parser.add_argument("--sounds", nargs="+", default=list(BASE_STEPS), choices=BASE_STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each training")
    parser.add_argument("--out", type=Path, default=RESULTS / "new_sound.json", help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.out.read_text(encoding="utf-8"))["rows"] if args.out.exists() else []
    for seed, sound in product(args.seeds, args.sounds):
        rows = [row for row in rows if (row["seed"], row["sound"]) != (seed, sound)]
        tunings = {tuning: strengths for tuning, strengths in TUNINGS.items() if tuning.sound == sound}
        for tuning, strengths in ({Tuning(sound, 0, 0): (0.0,)} | tunings).items():
            new = rows_of(args.work, tuning, strengths, seed)
            rows += new
            record = {"base_steps": BASE_STEPS, "captions": TEST, "summary": summarise(rows), "rows": rows}
            write_json(args.out, record)
            for row in new:
                right = {kind: (row[kind]["right"]["whole clip"], row[kind]["interval"]) for kind in TEST}
                print(seed, tuning.name, row["strength"], json.dumps(right), flush=True)


if __name__ == "__main__":
    main()
