"""Make the small files of tests/public/files: a codec, shards, a training checkpoint, an export and an audiocraft pair.

They stand for what users have on their disks. They are made once and kept, because a later version has to read
files of an earlier one. Make them again only if such files need not be readable any more:

    python tests/public/make_public_files.py

All of it is random or synthetic: no model and no recording of anyone is in it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import EncodecConfig, EncodecModel

from magnet_train import DecodingConfig, Magnet, generate_tokens
from magnet_train.checkpoints.audiocraft.write import T5_WIDTHS, save_audiocraft
from magnet_train.checkpoints.load import read_model
from magnet_train.cli.main import main

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "files"
RESULTS = "results.json"  # what the models gave when they were made
CAPTIONS = ("a calm flute on low do", "a fast flute on mi", "a slow clarinet on sol")
CLIPS, SECONDS, RATE, FRAMES = 6, 1.0, 1600, 25
DECODING = DecodingConfig(decoding_steps=(3, 2, 2, 2), max_cfg_coef=3.0)
CONFIGS = (f"{ROOT}/configs/base.yaml", f"{ROOT}/configs/trainer/cpu.yaml", f"{ROOT}/tests/public/tiny.yaml")


def make_all(folder: Path) -> None:
    """Write all files into a new folder, with what the models give."""
    folder.mkdir()
    with contextlib.chdir(folder):  # so that the paths in the files are relative
        make_codec(Path("codec"))
        make_shards(Path("shards"))
        fit(Path("run"))
        losses = training_losses(Path("run"))
        shutil.copyfile("run/step=0000002.ckpt", "last.ckpt")
        shutil.rmtree("run")
        run("export", "--checkpoint", "last.ckpt", "--out", "export")
        make_audiocraft(Path("last.ckpt"), Path("audiocraft"))
        results = {"tokens": generate_all(Path()), "losses": losses}
        Path(RESULTS).write_text(json.dumps(results) + "\n")


def make_codec(folder: Path) -> None:
    """Save a random EnCodec: 4 codebooks of 16 entries at 25 Hz, 1.6 kHz mono."""
    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=RATE,
        target_bandwidths=[0.4],  # kbit/s: 4 codebooks of 4 bits at 25 Hz
        upsampling_ratios=[8, 8],
        num_filters=2,
        hidden_size=8,
        codebook_size=16,
        codebook_dim=8,
        num_lstm_layers=1,
        normalize=False,
        chunk_length_s=None,
    )
    model = EncodecModel(config)
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()  # transformers starts them at zero
    model.save_pretrained(folder)


def make_shards(folder: Path) -> None:
    """Tokenize six captioned clips of one to two seconds."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as audio:
        for index in range(CLIPS):
            time = np.arange(int(RATE * rng.uniform(1.0, 2.0))) / RATE
            sound = 0.4 * np.sin(2 * np.pi * rng.uniform(100, 500) * time)
            soundfile.write(f"{audio}/{index}.wav", sound, RATE)
            Path(f"{audio}/{index}.txt").write_text(CAPTIONS[index % len(CAPTIONS)] + "\n")
        run("tokenize", "--audio", audio, "--out", str(folder), "--codec", "codec", "--workers", "1")


def fit(folder: Path, *options: str) -> None:
    """Train a model of width 8 for four steps on `shards` of the working directory."""
    configs = [word for config in CONFIGS for word in ("-c", config)]
    run("fit", *configs, "--run", str(folder), *options)


def training_losses(folder: Path) -> dict[str, float]:
    """Return step -> training loss (nats per masked token) of a run."""
    with (folder / "metrics.csv").open() as file:
        return {row["step"]: float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


def make_audiocraft(checkpoint: Path, folder: Path) -> None:
    """Write the audiocraft pair of a random model, with codec and frozen T5 by hub id as audiocraft needs them."""
    model, t5 = read_model(checkpoint), "t5-small"
    weights = {name: tensor for name, tensor in model.weights.items() if not name.startswith("text.")}
    generator = torch.Generator().manual_seed(0)
    weights["lm.text_proj.weight"] = torch.randn(model.lm["dim"], T5_WIDTHS[t5], generator=generator)
    model = replace(
        model,
        lm=model.lm | {"text_dim": T5_WIDTHS[t5]},
        text={"kind": "t5", "name": t5, "trainable": False, "max_length": 77},
        codec=replace(model.codec, id="facebook/encodec_32khz"),
        codec_folder=None,
        text_folder=None,
        weights=weights,
    )
    save_audiocraft(model, folder)


def generate_all(folder: Path) -> dict[str, Any]:
    """Return the tokens [B, K, T] of two clips by the checkpoint, the export and the audiocraft pair of `folder`."""
    tokens = {
        name: Magnet.from_pretrained(folder / name).generate_tokens(CAPTIONS[:2], seconds=SECONDS, seed=3)
        for name in ("last.ckpt", "export")
    }
    lm = Magnet.from_pretrained(folder / "audiocraft").lm
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, 5, T5_WIDTHS["t5-small"], generator=generator)  # in place of a T5's states
    mask = torch.ones(2, 5, dtype=torch.bool)
    tokens["audiocraft"] = generate_tokens(
        lambda given, stage, _: lm(given, stage=stage, text=hidden, text_mask=mask),
        (2, lm.n_q, FRAMES),
        DECODING,
        card=lm.card,
        span_len=lm.span_len,
        generator=generator,
    )
    return {name: clips.tolist() for name, clips in tokens.items()}


def run(*words: str) -> None:
    """Run a command of magnet-train, which has to succeed."""
    if code := main(words):
        raise SystemExit(f"magnet-train {' '.join(words)} ended with exit code {code}")


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # its path, not that of this checkout, gets into the checkpoint
        make_all(Path(scratch) / "files")
        shutil.rmtree(FILES, ignore_errors=True)
        shutil.copytree(Path(scratch) / "files", FILES)
