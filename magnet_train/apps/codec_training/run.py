"""Make a codec from a folder: draw audio, fit, train for the remaining minutes, measure, and write the folder whole."""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from datamodules.tokenize.audio_files import local_source
from magnet_train.apps.codec_training.excerpts import CLIP_FRAMES, FRAMES_PER_ENTRY, Excerpts, draw_excerpts
from magnet_train.apps.codec_training.measures import Measured, measure
from magnet_train.apps.codec_training.page import GOOD_FOR, rows_of, write_page
from magnet_train.apps.codec_training.recipe import FRAME_RATE, DecoderTraining, Recipe, save, start_codec
from magnet_train.checkpoints.export import whole_folder
from magnet_train.cli.console import ProgressBar, count, duration, on_signal, table
from magnet_train.codecs import load_codec
from magnet_train.storage.plain_text import printable

REPORT, PAGE = "training.json", "report.html"
LARGEST_RATIO = 21  # upsampling of the last decoder layer, which has channels for no more
SECONDS_PER_MINUTE = 180.0  # of training audio per minute of wall time
MOST_SECONDS = 1800.0  # more audio hardly improves a codec of this size
FIT_CLIPS = 1200  # to fit transform and codebooks
MAX_ERRORS = 0.9
FEW_STEPS = 100  # of training; fewer hardly change the decoder
MEASURING = 0.05  # share of the wall time


def recipe_of(sample_rate: int, codebooks: int, card: int) -> Recipe:
    """Return the recipe of a codec of these sizes for any sound."""
    hop = sample_rate // FRAME_RATE
    ratio = max(number for number in range(1, LARGEST_RATIO + 1) if hop % number == 0)
    return Recipe(
        sample_rate=sample_rate,
        codebooks=codebooks,
        card=card,
        ratios=(hop // ratio, ratio),
        whitening=0.3,
        vectors=50_000,
        iterations=12,
        noise_share=1.0,
        noise_weight=1.0,
        max_errors=MAX_ERRORS,
        hits_weight=0.0,
    )


def make_codec(
    audio: str, out: Path, recipe: Recipe, minutes: float, steps: int | None = None, seed: int = 0
) -> Measured | None:
    """Make a codec, and print its reconstruction quality on held-out files.

    Args:
        audio: Folder of audio, searched recursively, or a list, here or at hf://datasets/, as for `tokenize`.
        out: Folder to write; must be empty or missing.
        recipe: From `recipe_of`.
        minutes: Wall time after the download; the number of steps follows from the time of the first ones.
        steps: Number of optimizer steps instead; the same number, seed, minutes and threads give the same codec.
        seed: Seed of the drawn excerpts, of the codebooks and of training.

    Returns:
        The measures; None if no file could be held out.

    Raises:
        UserError: The folder cannot be downloaded or holds too little sound, or `out` cannot be written.
    """
    source = local_source(audio)
    begin = time.monotonic()
    needed = recipe.card * FRAMES_PER_ENTRY / FRAME_RATE
    wanted = max(needed + CLIP_FRAMES, min(MOST_SECONDS, SECONDS_PER_MINUTE * minutes))
    with on_signal(signal.SIGTERM, _interrupt), whole_folder(out) as partial:
        with _Progress(begin + 60 * minutes) as progress:
            excerpts = draw_excerpts(source, recipe, wanted, seed, progress.show("read"))
            torch.manual_seed(seed)
            model = start_codec(excerpts.clips[:FIT_CLIPS], recipe, progress.show("codebooks"))
            training = DecoderTraining(model, [excerpts.clips], recipe)
            if steps is None:
                left = (1 - MEASURING) * 60 * minutes - (time.monotonic() - begin)
                steps = max(1, int(left / training.seconds_per_step()))
            training.run(steps, progress.count_steps(steps))
        save(model, partial)
        with Console(stderr=True).status("measuring"):
            measured, decoded = None, dict[str, Tensor]()
            if excerpts.held_out:
                measured, decoded = measure(load_codec(str(partial)), excerpts.held_out)
        record = _record(recipe, excerpts, partial, minutes, steps, seed)
        record |= {"command": _command(audio, out, record), "measures": measured and asdict(measured)}
        (partial / REPORT).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        write_page(partial / PAGE, record, measured, excerpts.held_out, decoded)
    _print_result(out, excerpts, measured, steps, time.monotonic() - begin)
    return measured


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("stopped by SIGTERM; nothing was written")


def _record(
    recipe: Recipe, excerpts: Excerpts, folder: Path, minutes: float, steps: int, seed: int
) -> dict[str, Any]:
    weights = (folder / "model.safetensors").read_bytes()
    return {
        "sample_rate": recipe.sample_rate,
        "frame_rate": FRAME_RATE,
        "codebooks": recipe.codebooks,
        "card": recipe.card,
        "minutes": minutes,
        "steps": steps,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds_of_audio": round(excerpts.seconds, 1),
        "files": excerpts.files,
        "left_out": excerpts.left_out,
        "bytes": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }


def _command(audio: str, out: Path, record: dict[str, Any]) -> str:
    """Return the command that makes the same codec again, given the same machine and number of threads."""
    words = ["magnet-train", "codec", "--audio", audio, "--out", str(out)]
    for name in ("sample_rate", "codebooks", "card", "minutes", "steps", "seed"):
        words += [f"--{name}", str(record[name])]
    return shlex.join(words)


def _print_result(
    out: Path, excerpts: Excerpts, measured: Measured | None, steps: int, seconds: float
) -> None:
    made_from = f"{duration(excerpts.seconds)} of {count(excerpts.files, 'file')}"
    print(f"wrote {out}: made from {made_from}, {count(steps, 'step')}, in {duration(seconds)}")
    if steps < FEW_STEPS:
        print("the decoder had little training: give more --minutes for a better sound")
    if excerpts.left_out:
        name, reason = next(iter(excerpts.left_out.items()))
        files = count(len(excerpts.left_out), "file")
        print(printable(f"left out {files}, for example {name} ({reason}); all are in {out / REPORT}"))
    if measured is None:
        print("not measured: no held-out file has sound")
    else:
        filled = table(count(len(excerpts.held_out), "held-out excerpt"), "", "", "by chance")
        for row in rows_of(measured):
            filled.add_row(*row)
        Console().print(filled)
    print(GOOD_FOR)
    print(f"players: {out / PAGE}")
    print(f"try it: magnet-train tokenize --audio FOLDER --out shards --codec {shlex.quote(str(out))}")


class _Progress(ProgressBar):
    """A progress bar with the phase and the total time left."""

    def __init__(self, deadline: float) -> None:
        super().__init__("codec", "steps", total=1.0)
        self._deadline = deadline

    def show(self, phase: str) -> Callable[[float], None]:
        """Return a function that shows the share of a phase, 0..1."""
        return lambda share: self.update(share, 1.0, f"{phase} {share:.0%}{self._left()}")

    def count_steps(self, steps: int) -> Callable[[int, float], None]:
        """Return a function that shows a step and its loss; the time left follows from the steps before."""
        begin = time.monotonic()

        def report(step: int, loss: float) -> None:
            done = step + 1
            left = (steps - done) * (time.monotonic() - begin) / done
            self.update(
                done, steps, f"decoder: step {done:,} of {steps:,}, loss {loss:.2f}, {duration(left)} left"
            )

        return report

    def _left(self) -> str:
        return f", about {duration(max(0.0, self._deadline - time.monotonic()))} left"
