"""Measure how well a LoRA adapter teaches a new instrument to a model, and what the model loses by it.

    python benchmarks/new_sound.py --work runs/new_sound

The base learns the drums of the quickstart's band and never hears a bass; its vocabulary has the words for one, as that of a
pretrained text encoder would. Adapters are trained on clips of the bass alone. The oracle then hears clips of three kinds of
captions: drums (are they kept?), bass (is it learned?) and both (which neither training had). One row lets the adapter
train on the drums too. Finished runs are not repeated.
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

from harness.quickstart_world import RESULTS, command, hardware, option_words, write_json
from magnet_train import Magnet
from magnet_train.apps.quickstart.band.captions import ATTRIBUTES, Caption, Score
from magnet_train.apps.quickstart.band.oracle import read_clips
from magnet_train.apps.quickstart.band.world import PARTS, BandWorld, play
from magnet_train.audio import encode_wav
from magnet_train.text.vocabulary import learn_words

SEED = 0
DRUMS, VALIDATION = 600, 60  # clips of drums that the base learns, and that it is validated on
TEST = 180  # captions, a third of each of PARTS
PASSES = (8, 1, 1, 1)  # as good as more of them, see decoding.py


@dataclass(frozen=True)
class Adapter:
    """What an adapter is trained on."""

    minutes: int = 10  # of bass
    steps: int = 450
    drums: bool = False  # as much of the drums, too

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"bass{self.minutes}-steps{self.steps}" + ("-drums" if self.drums else "")


# Each adapter with the strengths that are heard.
ADAPTERS: dict[Adapter, tuple[float, ...]] = {
    Adapter(): (0.5, 1.0, 1.5),
    Adapter(minutes=1): (1.0,),
    Adapter(minutes=3): (1.0,),
    Adapter(steps=150): (1.0,),
    Adapter(drums=True): (1.0,),
    Adapter(steps=1350): (1.0,),
}


def make_shards(work: Path, part: str, split: str, clips: int) -> Path:
    """Write and tokenize the first clips of one of PARTS, unless an earlier run has."""
    audio, shards = (work / folder / f"{part}-{split}-{clips}" for folder in ("audio", "shards"))
    if not (shards / "manifest.json").exists():
        audio.mkdir(parents=True, exist_ok=True)
        captions = BandWorld(SEED).captions(len(PARTS) * clips, split)[PARTS.index(part) :: len(PARTS)]
        for index, caption in enumerate(captions):
            path = audio / f"{part}-{index:05d}.wav"
            path.write_bytes(
                encode_wav(play(caption.score, np.random.default_rng([SEED, index])), BandWorld.sample_rate)
            )
            path.with_suffix(".json").write_text(json.dumps(caption.to_dict()), encoding="utf-8")
        command("tokenize", "--audio", str(audio), "--out", str(shards), "--codec", "band")
    return shards


def fit(folder: Path, configs: Sequence[str], steps: int, options: dict[str, object]) -> Path:
    """Train for some steps, unless an earlier run has; return the checkpoint."""
    checkpoint = folder / "last.ckpt"
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
    return checkpoint


def train_base(work: Path, steps: int) -> Path:
    """Train the model that knows drums alone."""
    words = learn_words((caption.text for caption in BandWorld(SEED).captions(1000)), "the band")
    text = {
        "class_path": "magnet_train.text.WordText",
        "init_args": {"tokenizer": "captions", "dim": 128, "words": words},
    }
    options: dict[str, object] = {
        "data.shards": make_shards(work, "drums", "train", DRUMS),
        "data.val_shards": make_shards(work, "drums", "validation", VALIDATION),
        "model.text": json.dumps(text),
    }
    return fit(work / f"base-{steps}", (), steps, options)


def train_adapter(work: Path, base: Path, adapter: Adapter) -> Path:
    """Train an adapter with the command of a user."""
    clips = round(adapter.minutes * CLIPS_PER_MINUTE)
    shards = {str(make_shards(work, "bass", "train", clips)): 1}
    if adapter.drums:
        shards[str(make_shards(work, "drums", "train", clips))] = 1
    options: dict[str, object] = {"init_from": base, "data.shards": json.dumps(shards)}
    return fit(work / adapter.name, ("finetune/lora",), adapter.steps, options)


def score_model(base: Path, adapter: Path | None = None, strength: float = 1.0) -> dict[str, Any]:
    """Return for each of PARTS how often each attribute, and all of a clip, is right, and by chance."""
    magnet = Magnet.from_pretrained(base)
    if adapter:
        magnet.load_adapter(adapter, strength)
    captions = BandWorld(SEED).captions(TEST, "test")
    decoding = replace(magnet.decoding, decoding_steps=PASSES)
    heard = read_clips(generate(magnet, captions, SEED, decoding=decoding))
    measured = {}
    for number, part in enumerate(PARTS):
        own, found = captions[number :: len(PARTS)], heard[number :: len(PARTS)]
        turns = [shares(own[n:] + own[:n], found) for n in range(1, len(own))]
        chance = {name: round(mean(turn[name] for turn in turns), 4) for name in turns[0]}
        measured[part] = {"right": shares(own, found), "chance": chance}
    return measured


def shares(captions: Sequence[Caption], heard: Sequence[Score]) -> dict[str, float]:
    """Return how often each attribute that the captions have is right, and the whole clip."""
    pairs = [(caption.score, score) for caption, score in zip(captions, heard, strict=True)]
    names = [name for name in ATTRIBUTES if getattr(pairs[0][0], name)]
    right = {name: mean(getattr(a, name) == getattr(b, name) for a, b in pairs) for name in names}
    return {
        name: round(value, 4)
        for name, value in (right | {"whole clip": mean(a == b for a, b in pairs)}).items()
    }


def main() -> None:
    """Train the base and all adapters, and rewrite the record after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/new_sound"), help="folder of clips and runs")
    parser.add_argument(
        "--base-steps", type=int, default=1000, help="training steps of the base (default: 1000)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "new_sound.json", help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = train_base(args.work, args.base_steps)
    record: dict[str, Any] = {
        "hardware": hardware(),
        "base_steps": args.base_steps,
        "captions": TEST // len(PARTS),
    }
    rows: list[dict[str, Any]] = []
    for adapter, strengths in [(None, (0.0,)), *ADAPTERS.items()]:
        checkpoint = train_adapter(args.work, base, adapter) if adapter else None
        minutes = float(((checkpoint or base).parent / "minutes").read_text(encoding="utf-8"))
        for strength in strengths:
            row = asdict(adapter) if adapter else {}
            row |= {"strength": strength, "fit_minutes": minutes}
            cache = (checkpoint or base).parent / f"scores-{strength:g}.json"
            if not cache.exists():
                cache.write_text(json.dumps(score_model(base, checkpoint, strength)), encoding="utf-8")
            rows.append(row | json.loads(cache.read_text(encoding="utf-8")))
            write_json(args.out, {**record, "rows": rows})
            whole = {part: rows[-1][part]["right"]["whole clip"] for part in PARTS}
            print(json.dumps(row), json.dumps(whole), flush=True)


if __name__ == "__main__":
    main()
