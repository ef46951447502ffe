"""What a trained model does besides clips of captions: a loop, an edit, a continuation, a long clip.

Each is one `magnet-train generate`. Shapes: audio float [samples].
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from magnet_train.apps.html_page import Audio

TURNS = 4  # of the loop on the page
WINDOWS = 4  # of the long clip
EDITED = 0.3, 0.7  # region of the edit, as shares of the recording

Part = tuple[float, float]
Generate = Callable[
    ..., tuple[str, Audio]
]  # from the name of a folder and words, to the whole command and its clip


@dataclass(frozen=True)
class Sound:
    """A sound and how the page shows it."""

    label: str
    audio: Audio
    marked: tuple[
        Part, ...
    ] = ()  # start and end of each part to mark, as shares of the sound; equal for a line
    loop: bool = False  # the player begins again at the end


@dataclass(frozen=True)
class Demonstration:
    """What a command made."""

    title: str
    explanation: str
    command: str  # as a user would type it
    sounds: tuple[Sound, ...]


@dataclass(frozen=True)
class _Recording:
    """A WAV with its caption."""

    path: Path
    caption: str
    audio: Audio
    seconds: float

    @classmethod
    def read(cls, path: Path) -> _Recording:
        caption = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["text"]
        return cls(path, caption, soundfile.read(path, dtype="float32")[0], soundfile.info(path).duration)


def demonstrate(
    run: Callable[..., None],
    out: Path,
    seed: int,
    loop: Sequence[str],
    caption: str,
    recordings: Sequence[Path],
) -> list[Demonstration]:
    """Run `generate` for each demonstration.

    Args:
        run: Runs a command, given as words without `magnet-train`.
        out: Folder of the quickstart, with its trained model; clips go to folders of `generated/`.
        seed: `--seed`.
        loop: Words of `generate` that make a loop.
        caption: Of the long clip.
        recordings: At least two WAV files of one length, beside each a .json with its caption (`text`) and what it
            plays. The edit gives the first one the caption of another with the same `tempo`, if there is one.

    Raises:
        UserError: A command failed.
    """
    generate = partial(_generate, run, out, seed)
    first, second = _Recording.read(recordings[0]), _Recording.read(_second(recordings))
    return [
        _loop(generate, loop),
        _edit(generate, first, second.caption),
        _continuation(generate, second),
        _long_clip(generate, caption, WINDOWS * second.seconds),
    ]


def _second(recordings: Sequence[Path]) -> Path:
    """Return the first recording that plays something else at the tempo of the first one; else the second."""

    def values(path: Path) -> dict[str, Any]:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return {name: value for name, value in content.items() if name != "text"}

    first = values(recordings[0])
    for path in recordings[1:]:
        other = values(path)
        if other != first and other.get("tempo") == first.get("tempo"):
            return path
    return recordings[1]


def _loop(generate: Generate, words: Sequence[str]) -> Demonstration:
    command, clip = generate("loop", *words)
    seams = tuple((turn / TURNS, turn / TURNS) for turn in range(1, TURNS))
    return Demonstration(
        "A loop",
        f"The end of the clip leads into its beginning. Here the clip is {TURNS} times in a row, with its seams "
        "marked, and the player goes on until you stop it.",
        command,
        (Sound(f"{TURNS} turns of the loop", np.tile(clip, TURNS), seams, loop=True),),
    )


def _edit(generate: Generate, recording: _Recording, caption: str) -> Demonstration:
    start, end = (round(share * recording.seconds, 2) for share in EDITED)
    region = ("--region", f"{start:g}:{end:g}")
    command, clip = generate("edit", "--edit", str(recording.path), *region, "--text", caption)
    marked = ((start / recording.seconds, end / recording.seconds),)
    return Demonstration(
        "An edit",
        f"A clip that was not trained on: “{recording.caption}”. The marked part is made again from another caption; "
        "outside it, every sample stays.",
        command,
        (Sound("before", recording.audio, marked), Sound("after", clip, marked)),
    )


def _continuation(generate: Generate, recording: _Recording) -> Demonstration:
    length = ("--seconds", f"{2 * recording.seconds:g}")
    command, clip = generate(
        "continuation", "--prompt", str(recording.path), "--text", recording.caption, *length
    )
    return Demonstration(
        "A continuation",
        "The marked beginning is a clip that was not trained on. The model goes on from there.",
        command,
        (Sound("continued", clip, ((0.0, 0.5),)),),
    )


def _long_clip(generate: Generate, caption: str, seconds: float) -> Demonstration:
    command, clip = generate("long", "--text", caption, "--seconds", f"{seconds:g}")
    return Demonstration(
        "A long clip",
        f"{WINDOWS} times the length that the model was trained on, made window by window.",
        command,
        (Sound(f"{seconds:g} seconds", clip),),
    )


def _generate(run: Callable[..., None], out: Path, seed: int, name: str, *words: str) -> tuple[str, Audio]:
    folder, model = out / "generated" / name, str(out / "run" / "last.ckpt")
    command = ("generate", "--model", model, *words, "--out", str(folder), "--seed", str(seed))
    run(*command)
    (line,) = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return f"magnet-train {shlex.join(command)}", soundfile.read(
        folder / json.loads(line)["file"], dtype="float32"
    )[0]
