"""The request that a filled form of the page stands for, with the limits of its values."""

from __future__ import annotations

import secrets
import unicodedata
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from magnet_train.audio import audio_seconds
from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.pipeline.inputs import FASTEST, SLOWEST, as_bars
from magnet_train.pipeline.magnet import Magnet

MAX_CLIPS = 4  # shown side by side
MAX_STEPS = 500  # per codebook; more gains nothing
MAX_TEXT = 1000  # characters
MAX_RECORDING = 600.0  # s; the command line takes longer ones
MAX_STRENGTH = 100.0  # of the temperature, and of guidance in either direction
MAX_SEED = 2**53 - 1  # the largest integer that a browser's numbers hold exactly
RANDOM_SEEDS = 10**6  # short enough to read out and to type
MAX_BARS = 1000
QUIETEST = -60  # LUFS
FORMATS = ("wav", "flac", "mp3", "ogg")
LOSSLESS = FORMATS[:2]


class Task(StrEnum):
    """What to generate; the values are the choices on the page."""

    TEXT = "New clip"
    CONTINUE = "Continue a recording"
    EDIT = "Change a part"
    LOOP = "Loop"


@dataclass(frozen=True)
class ClipRequest:
    """What a visitor asks for, checked."""

    task: Task
    text: str | None  # None generates without a caption
    seconds: float  # of a clip; an edit keeps the length of its recording
    seed: int  # of all clips of the request
    clips: int  # 1..MAX_CLIPS, with indices from 0
    decoding: DecodingConfig
    recording: Path | None = None  # uploaded, to continue or to edit
    kept_seconds: float = 0.0  # of the recording, with which a continuation starts
    from_end: bool = True  # whether they are the recording's last seconds instead of its first
    region: tuple[float, float] = (0.0, 0.0)  # start and end (s) of the part that an edit regenerates
    negative: str | None = None  # caption of what to avoid
    bars: int | None = None  # length of a loop in place of `seconds`, with `bpm`
    bpm: float | None = None
    loudness: float | None = None  # LUFS
    format: str = "wav"


def read_request(magnet: Magnet, form: dict[str, Any]) -> ClipRequest:
    """Check the values of a form, by the names of `build_form`; a client may have set them to anything.

    Raises:
        UserError: A value is out of range or of the wrong type, or values do not fit each other.
    """
    if form["task"] not in list(Task):
        raise UserError(f"the task should be one of {', '.join(Task)}.")
    longest = magnet.segment_duration
    drawn = form["random_seed"] or form["seed"] is None
    request = ClipRequest(
        task=Task(form["task"]),
        text=_read_text(form["text"] or ""),
        seconds=min(_number("length", form["seconds"], 0, longest + 1e-6), longest),
        seed=secrets.randbelow(RANDOM_SEEDS) if drawn else _integer("seed", form["seed"], 0, MAX_SEED),
        clips=_integer("number of variations", form["clips"], 1, MAX_CLIPS),
        decoding=_read_sampler(magnet, form),
        negative=_read_text(form["negative"] or ""),
        loudness=_number("loudness", form["loudness"] or 0, QUIETEST, 0) or None,
        format=form["format"],
    )
    if request.format not in FORMATS:
        raise UserError(f"the format should be one of {', '.join(FORMATS)}.")
    if request.task is Task.LOOP and form["bars"]:
        return _with_bars(request, form, longest)
    return _with_recording(request, form) if request.task in (Task.CONTINUE, Task.EDIT) else request


def _with_recording(request: ClipRequest, form: dict[str, Any]) -> ClipRequest:
    if not isinstance(form["recording"], str):
        raise UserError("there is no recording yet; drop one into the field Recording.")
    request = replace(request, recording=Path(form["recording"]))
    if request.task is Task.EDIT:
        if request.format not in LOSSLESS:
            raise UserError(
                f"a changed recording keeps its samples only in {' or '.join(LOSSLESS)}; choose one."
            )
        request = replace(request, loudness=None)  # the field is hidden
        start, end = (_number(name, form[name] or 0, 0, MAX_RECORDING) for name in ("start", "end"))
        return replace(request, region=(start, end))
    kept = _number("seconds to keep", form["kept_seconds"] or 0, 0, MAX_RECORDING)
    if not 0 < kept < request.seconds:
        raise UserError(
            f"seconds to keep {kept:g} should be more than 0 and less than the clip's length of "
            f"{request.seconds:g} s."
        )
    return replace(request, kept_seconds=kept, from_end=form["which"] == "the last")


def _with_bars(request: ClipRequest, form: dict[str, Any], longest: float) -> ClipRequest:
    bars = _integer("number of bars", form["bars"], 1, MAX_BARS)
    bpm = _number("tempo", form["bpm"], SLOWEST, FASTEST)
    if (seconds := as_bars(bars, bpm)) > longest:
        raise UserError(
            f"{bars} bars at {bpm:g} bpm last {seconds:.1f} s; the page makes clips of up to {longest:g} s, and "
            "`magnet-train generate` longer ones."
        )
    return replace(request, seconds=seconds, bars=bars, bpm=bpm)


def _read_text(text: object) -> str | None:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise UserError(f"the text should have at most {MAX_TEXT} characters.")
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\t\r\n" for letter in text):
        raise UserError("the text contains a control character or half of a surrogate pair; type it again.")
    return text.strip() or None


def _read_sampler(magnet: Magnet, form: dict[str, Any]) -> DecodingConfig:
    """Return the model's sampler settings with the form's; an empty number keeps the model's."""
    own = magnet.decoding

    def number(name: str, label: str, default: float, least: float, most: float) -> float:
        return default if form[name] is None else _number(label, form[name], least, most)

    strongest = (-MAX_STRENGTH, MAX_STRENGTH)
    decoding = replace(
        own,
        decoding_steps=read_steps(form["steps"], magnet.lm.n_q),
        temperature=number("temperature", "temperature", own.temperature, 0, MAX_STRENGTH),
        anneal_temperature=not form["constant_temperature"],
        top_p=number("top_p", "top_p", own.top_p, 0, 1),
        max_cfg_coef=number("guidance", "guidance at the start", own.max_cfg_coef, *strongest),
        min_cfg_coef=number("last_guidance", "guidance at the end", own.min_cfg_coef, *strongest),
    )
    decoding.check(magnet.lm.n_q, magnet.lm.card)
    return decoding


def read_steps(text: object, n_q: int) -> tuple[int, ...]:
    """Parse the decoding steps of each codebook, `n_q` integers in 1..MAX_STEPS, separated by commas or spaces."""
    words = str(text)[:200].replace(",", " ").split()
    valid = [word.isascii() and word.isdigit() and 1 <= int(word) <= MAX_STEPS for word in words]
    if len(words) != n_q or not all(valid):
        raise UserError(
            f"steps '{str(text)[:40]}' should be {n_q} whole numbers from 1 to {MAX_STEPS}, one for each codebook."
        )
    return tuple(map(int, words))


def _number(name: str, value: object, least: float, most: float) -> float:
    """Return a number in least..most; NaN is refused, as no comparison with it is true."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{name} {str(value)[:30]} should be a number from {least:g} to {most:g}.")
    return float(value)


def _integer(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, float) and value.is_integer():  # a browser sends 5 and 5.0 alike
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name} {str(value)[:30]} should be a whole number from {least} to {most}.")
    return value


def recording_seconds(path: Path) -> float:
    """Return the length of an uploaded recording (s); raises `UserError` if it is not audio or too long."""
    seconds = audio_seconds(path)
    if not seconds <= MAX_RECORDING:
        raise UserError(
            f"{path.name} lasts {seconds / 60:.1f} minutes; cut it to at most {MAX_RECORDING / 60:.0f}, or use "
            "`magnet-train generate`, which takes any length."
        )
    return seconds
