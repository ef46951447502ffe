"""What a visitor asks for, checked field by field, and the command that makes the same clip."""

from __future__ import annotations

import secrets
import shlex
import unicodedata
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.pipeline.magnet import Magnet

MOST_CLIPS = 4  # side by side on a page
MOST_STEPS = 500  # of a codebook; far beyond what gains anything
LONGEST_TEXT = 1000  # characters
LONGEST_RECORDING = 600.0  # s; longer ones are for the command line
STRONGEST = 100.0  # temperature, and guidance to either side
LARGEST_SEED = 2**53 - 1  # that a browser's numbers hold exactly
RANDOM_SEEDS = 10**6  # easy to read out and to type


class Task(StrEnum):
    """What is made, as the page calls it."""

    TEXT = "New clip"
    CONTINUE = "Continue a recording"
    EDIT = "Change a part"
    LOOP = "Loop"


@dataclass(frozen=True)
class ClipRequest:
    """The form, filled in.

    Args:
        task: What to make.
        text: The caption; None for clips without one.
        seconds: Length of a clip (s); an edit keeps that of its recording.
        seed: Of all clips.
        clips: How many, 1..MOST_CLIPS; each has its index, from 0 on.
        decoding: Sampler settings.
        recording: What to continue or to edit.
        kept_seconds: How much of the recording a continuation begins with (s).
        from_end: Whether that is the recording's end instead of its beginning.
        region: Start and end of the part that an edit makes again (s).
    """

    task: Task
    text: str | None
    seconds: float
    seed: int
    clips: int
    decoding: DecodingConfig
    recording: Path | None = None
    kept_seconds: float = 0.0
    from_end: bool = True
    region: tuple[float, float] = (0.0, 0.0)


def read_request(magnet: Magnet, form: dict[str, Any]) -> ClipRequest:
    """Read the form, whatever a client sent for it.

    Args:
        magnet: Whom it is for.
        form: The fields of `form.lay_out_form`.

    Raises:
        UserError: A field is out of its range or of another type, or fields do not go together.
    """
    task, text = form["task"], form["text"] or ""
    if task not in list(Task):
        raise UserError(f"the task should be one of {', '.join(Task)}.")
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise UserError(f"the text should have at most {LONGEST_TEXT} characters.")
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\t\r\n" for letter in text):
        raise UserError("the text holds a control character or half a character; type it again.")
    surprise = form["surprise"] or form["seed"] is None
    request = ClipRequest(
        Task(task),
        text.strip() or None,
        min(_number("length", form["seconds"], 0, magnet.segment_duration + 1e-6), magnet.segment_duration),
        secrets.randbelow(RANDOM_SEEDS) if surprise else _whole("seed", form["seed"], 0, LARGEST_SEED),
        _whole("number of variations", form["clips"], 1, MOST_CLIPS),
        _read_sampler(magnet, form),
    )
    if request.task not in (Task.CONTINUE, Task.EDIT):
        return request
    if not isinstance(form["recording"], str):
        raise UserError("there is no recording yet; drop one into the field Recording.")
    request = replace(request, recording=Path(form["recording"]))
    if request.task is Task.EDIT:
        ends = [_number(name, form[name] or 0, 0, LONGEST_RECORDING) for name in ("start", "end")]
        return replace(request, region=(ends[0], ends[1]))
    kept = _number("length to keep", form["kept_seconds"] or 0, 0, LONGEST_RECORDING)
    if not 0 < kept < request.seconds:
        raise UserError(
            f"{kept:g} s are to be kept of a clip of {request.seconds:g} s, which leaves nothing to make; keep "
            "less, or more than 0."
        )
    return replace(request, kept_seconds=kept, from_end=form["which"] == "the last")


def _read_sampler(magnet: Magnet, form: dict[str, Any]) -> DecodingConfig:
    """Put the form's settings over the model's own; an empty field leaves those."""
    own = magnet.decoding

    def number(field: str, default: float, least: float, most: float) -> float:
        value = form[field]
        return default if value is None else _number(field, value, least, most)

    decoding = replace(
        own,
        decoding_steps=read_steps(form["steps"], magnet.lm.n_q),
        temperature=number("temperature", own.temperature, 0, STRONGEST),
        anneal_temperature=not form["constant_temperature"],
        top_p=number("top_p", own.top_p, 0, 1),
        max_cfg_coef=number("guidance", own.max_cfg_coef, -STRONGEST, STRONGEST),
        min_cfg_coef=number("last_guidance", own.min_cfg_coef, -STRONGEST, STRONGEST),
    )
    decoding.check(magnet.lm.n_q, magnet.lm.card)
    return decoding


def read_steps(text: object, n_q: int) -> tuple[int, ...]:
    """Read the steps of each codebook, separated by commas or spaces.

    Raises:
        UserError: They are not `n_q` whole numbers in 1..MOST_STEPS.
    """
    words = str(text)[:200].replace(",", " ").split()
    if len(words) != n_q or not all(
        word.isascii() and word.isdigit() and len(word) < 9 and 1 <= int(word) <= MOST_STEPS for word in words
    ):
        raise UserError(
            f"steps '{str(text)[:40]}' should be {n_q} whole numbers from 1 to {MOST_STEPS}, one for each codebook."
        )
    return tuple(map(int, words))


def _number(name: str, value: object, least: float, most: float) -> float:
    """Return a number that lies in a range; NaN lies in none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{name} {str(value)[:30]} should be a number from {least:g} to {most:g}.")
    return float(value)


def _whole(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, float) and value.is_integer():  # a browser does not tell 5.0 from 5
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name} {str(value)[:30]} should be a whole number from {least} to {most}.")
    return value


@dataclass(frozen=True)
class Source:
    """The model as the command line names it.

    Args:
        model: As given to --model.
        decoding: Its own sampler settings.
        device: Where it computes.
        version: Of magnet-train.
        adapter: LoRA checkpoint on top of it.
        adapter_strength: How much of that.
    """

    model: str
    decoding: DecodingConfig
    device: str
    version: str
    adapter: str | None = None
    adapter_strength: float = 1.0


def command(request: ClipRequest, index: int, source: Source, recording: str | None = None) -> str:
    """Write the command that makes the same clip, and below it the settings as a comment of the shell.

    Args:
        request: What was made.
        index: The clip's own.
        source: By what.
        recording: File name of the recording, or of the part of it that was kept.
    """
    words = ["--model", source.model]
    if source.adapter is not None:
        words += ["--adapter", source.adapter, "--adapter_strength", _digits(source.adapter_strength)]
    words += ["--unconditional", "1"] if request.text is None else _option("--text", request.text)
    if request.task is not Task.EDIT:
        words += ["--seconds", _digits(request.seconds)]
    if request.task is Task.CONTINUE:
        words += _option("--prompt", recording or "")
    if request.task is Task.EDIT:
        words += [*_option("--edit", recording or ""), "--region", ":".join(map(_digits, request.region))]
    if request.task is Task.LOOP:
        words += ["--loop"]
    words += ["--seed", str(request.seed), *(["--first_index", str(index)] if index else [])]
    words += [*_sampler_words(request.decoding, source.decoding), "--device", source.device]
    words += ["--out", f"clip_{request.seed}_{index}"]
    return f"magnet-train generate {shlex.join(words)}\n# {_settings(request.decoding, source)}"


def _settings(decoding: DecodingConfig, source: Source) -> str:
    how = "constant" if not decoding.anneal_temperature else "falling"
    sampling = (
        f"temperature {_digits(decoding.temperature)} ({how}), top_p {_digits(decoding.top_p)}, top_k {decoding.top_k}"
        if decoding.use_sampling
        else "the most probable token each time"
    )
    guidance = f"{_digits(decoding.max_cfg_coef)} to {_digits(decoding.min_cfg_coef)}"
    return (
        f"magnet-train {source.version} on {source.device}: steps {' '.join(map(str, decoding.decoding_steps))}, "
        f"{sampling}, guidance {guidance}, spans {decoding.span_arrangement}, scored by {decoding.span_scoring}"
    )


def _sampler_words(decoding: DecodingConfig, own: DecodingConfig) -> list[str]:
    """Name the settings of the page that differ from the model's own."""
    words: list[str] = []
    if decoding.decoding_steps != own.decoding_steps:
        words += ["--steps", ",".join(map(str, decoding.decoding_steps))]
    if decoding.temperature != own.temperature:
        words += ["--temperature", _digits(decoding.temperature)]
    if decoding.anneal_temperature != own.anneal_temperature:
        words += ["--no-constant_temperature" if decoding.anneal_temperature else "--constant_temperature"]
    if decoding.top_p != own.top_p:
        words += ["--top_p", _digits(decoding.top_p)]
    guidance = (decoding.max_cfg_coef, decoding.min_cfg_coef)
    if guidance != (own.max_cfg_coef, own.min_cfg_coef):
        words += _option("--cfg", ",".join(map(_digits, guidance)))
    return words


def _option(name: str, value: str) -> list[str]:
    """Join a value that begins with a dash to its option: it would pass for one."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def _digits(value: float) -> str:
    """Write a number so that it reads back as the same one."""
    return repr(float(value)).removesuffix(".0")
