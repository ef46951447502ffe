"""Run the quickstart: make captioned audio, type the commands a user would type, listen to what came out.

Shapes: audio float [samples] at 8 kHz.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from rich.progress import track

from magnet_train.apps.quickstart.captions import TIMBRES, Caption
from magnet_train.apps.quickstart.pictures import draw_accuracy, draw_losses, draw_spectrograms
from magnet_train.apps.quickstart.report import Report, read_metrics
from magnet_train.apps.quickstart.score import accuracy, chance, read_clips
from magnet_train.apps.quickstart.world import ToneWorld
from magnet_train.cli.main import main
from magnet_train.codecs import Codec, load_codec
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import explain_disk_errors

Floats = npt.NDArray[np.floating]

CODEC = "quickstart"
TRAINING, VALIDATION = 1400, 160  # clips
SEEN, UNSEEN, UNCONDITIONAL = 240, 96, 120  # clips to generate and score
CONFIGS = {
    "default": ("configs/base.yaml", "configs/quickstart.yaml", "configs/trainer/cpu.yaml"),
    "full": (
        "configs/base.yaml",
        "configs/quickstart.yaml",
        "configs/quickstart_full.yaml",
        "configs/trainer/cpu.yaml",
    ),
}
MADE_HERE = ("audio", "shards", "run", "prompts", "generated")  # folders that --overwrite may remove
REPORT = "report.json"


def run_quickstart(
    out: Path, preset: str, seed: int, overwrite: bool, fit_options: Sequence[str] = ()
) -> Report:
    """Make audio, train on it, generate and score.

    Args:
        out: Folder for everything; must be empty unless `overwrite`.
        preset: "default" or "full", see `world.PRESETS`.
        seed: Of the world, the training and the generation.
        overwrite: Remove what an earlier run left in `out`.
        fit_options: Further words for `fit`, `--trainer.max_steps 100` say.

    Raises:
        UserError: `out` holds something or cannot be written to, or one of the commands failed.
        SystemExit: With 2, `fit_options` are wrong.
    """
    fit = _fit_command(out, preset, seed, fit_options)
    _try_options(fit)
    _clear(out, overwrite)
    started = time.monotonic()
    world = ToneWorld(preset, seed)
    _make_shards(out, world)
    type_command(*fit)

    seen, unseen = world.captions(SEEN, "test"), world.captions(UNSEEN, "test", unseen=True)
    clips = {
        "seen": _generate(out, "seen", seed, "--prompts", _write_prompts(out, "seen", seen)),
        "unseen": _generate(out, "unseen", seed, "--prompts", _write_prompts(out, "unseen", unseen)),
        "unconditional": _generate(out, "unconditional", seed, "--unconditional", str(UNCONDITIONAL)),
    }

    codec = load_codec(CODEC)
    real = [audio for _, audio in world.clips(SEEN, "test")]
    decoded = through_codec(codec, real)
    heard = read_clips(clips["seen"])
    losses = read_metrics(out / "run" / "metrics.csv", "val/loss_codebook_")
    report = Report(
        minutes=(time.monotonic() - started) / 60,
        n=len(seen),
        accuracy=accuracy(seen, heard),
        unseen=accuracy(unseen, read_clips(clips["unseen"])),
        ceiling=accuracy(seen, read_clips(decoded)),
        chance=chance(seen, heard, seed),
        unconditional=chance(seen[:UNCONDITIONAL], read_clips(clips["unconditional"]), seed),
        val_loss_per_codebook=[values[-1] for _, values in losses.values()],
    )
    report.write(out / REPORT)
    draw_losses(out / "run" / "metrics.csv", codec.card, out / "losses.png")
    draw_accuracy(report, out / "accuracy.png")
    rows = [(seen[i], real[i], decoded[i], clips["seen"][i]) for i in _one_of_each_timbre(seen)]
    draw_spectrograms(rows, out / "clips.png")
    print(f"\nwrote {out / REPORT}, losses.png, accuracy.png and clips.png; clips are in {out / 'generated'}")
    print(report.verdict())
    model = shlex.quote(str(out / "run" / "last.ckpt"))
    print(
        f"Ask it yourself: magnet-train generate --model {model} --text 'a calm flute on low do' --out clips\n"
        f"or on a page in the browser: magnet-train demo --model {model} --open"
    )
    return report


def type_command(*words: str) -> None:
    """Print a command as a user would type it, and run it in this process.

    Raises:
        UserError: It failed; it has said why.
    """
    print(f"\n$ magnet-train {shlex.join(words)}", flush=True)
    if main(words) != 0:
        raise UserError(
            f"`magnet-train {words[0]}` failed, so the quickstart stops; mend what it names above, and start again "
            "with --overwrite."
        )


@torch.inference_mode()
def through_codec(codec: Codec, clips: Sequence[Floats], batch: int = 40) -> list[Floats]:
    """Encode and decode clips of one length, float [samples] each."""
    decoded: list[Floats] = []
    for first in track(range(0, len(clips), batch), "through the codec"):
        audio = torch.from_numpy(np.stack(clips[first : first + batch]))[:, None]
        decoded.extend(codec.decode(codec.encode(audio))[:, 0].numpy())
    return decoded


def _clear(out: Path, overwrite: bool) -> None:
    with explain_disk_errors(out):
        if overwrite and out.is_dir():
            for name in MADE_HERE:
                shutil.rmtree(out / name, ignore_errors=True)
            for path in (out / REPORT, *out.glob("*.png")):
                path.unlink(missing_ok=True)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} is not an empty folder; give --out a new one, or --overwrite for an earlier run's."
            )


def _make_shards(out: Path, world: ToneWorld) -> None:
    """Write the captioned audio, then turn it into tokens by the commands."""
    for split, count in (("train", TRAINING), ("validation", VALIDATION)):
        folder, shards = out / "audio" / split, str(out / "shards" / split)
        world.write(folder, count, split, partial(track, description="synthesise", total=count))
        print(f"wrote {count} captioned WAV files of {world.preset.seconds:g} s to {folder}")
        type_command("tokenize", "--audio", str(folder), "--out", shards, "--codec", CODEC)
        type_command("verify", shards)


def _fit_command(out: Path, preset: str, seed: int, options: Sequence[str]) -> list[str]:
    configs = [word for config in CONFIGS[preset] for word in ("-c", config)]
    data = [
        "--data.shards",
        str(out / "shards" / "train"),
        "--data.val_shards",
        str(out / "shards" / "validation"),
    ]
    seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
    return ["fit", *configs, *data, *seeds, "--run", str(out / "run"), *options]


def _try_options(fit: Sequence[str]) -> None:
    """Let `fit` read its options and go no further: a wrong one is told before everything else is made.

    Raises:
        UserError: A file that they name is missing.
        SystemExit: With 2, they are wrong; it has been said why.
    """
    from magnet_train.cli import lightning

    with contextlib.redirect_stdout(io.StringIO()):  # the whole configuration, which nobody asked for
        try:
            lightning.run([*fit, "--print_config"])
        except SystemExit as done:
            if done.code != 0:
                raise


def _write_prompts(out: Path, name: str, captions: Sequence[Caption]) -> str:
    """Write a file that `generate --prompts` reads, and return its name."""
    path = out / "prompts" / f"{name}.jsonl"
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": c.text}) + "\n" for c in captions), encoding="utf-8")
    return str(path)


def _generate(out: Path, name: str, seed: int, *what: str) -> list[Floats]:
    """Generate clips by the command and read the files it lists, in the order of the prompts."""
    folder = out / "generated" / name
    type_command(
        "generate",
        "--model",
        str(out / "run" / "last.ckpt"),
        *what,
        "--out",
        str(folder),
        "--seed",
        str(seed),
    )
    results = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [soundfile.read(folder / json.loads(line)["file"], dtype="float32")[0] for line in results]


def _one_of_each_timbre(captions: Sequence[Caption]) -> list[int]:
    """Return the number of the first caption whose first event has each timbre."""
    timbres = [caption.events[0].timbre for caption in captions]
    return [timbres.index(timbre) for timbre in TIMBRES if timbre in timbres]
