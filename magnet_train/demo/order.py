"""What a visitor asks for, and the same in words for the command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError

MOST_CLIPS = 4  # side by side on a page
MOST_STEPS = 500  # of a codebook; far beyond what gains anything
LARGEST_SEED = 2**53 - 1  # that a browser's numbers hold exactly


class Kind(StrEnum):
    """What is made, as the page calls it."""

    TEXT = "New clip"
    CONTINUE = "Continue a recording"
    EDIT = "Change a part"
    LOOP = "Loop"


@dataclass(frozen=True)
class Order:
    """The form, filled in.

    Args:
        kind: What to make.
        text: The caption; empty for clips without one.
        seconds: Length of a clip (s); an edit keeps that of its recording.
        seed: Of the first clip; the next ones have the next numbers.
        clips: How many, 1..MOST_CLIPS.
        decoding: Sampler settings.
        recording: What to continue or to edit.
        kept_seconds: How much of the recording a continuation begins with (s).
        from_end: Whether that is the recording's end instead of its beginning.
        region: Start and end of what an edit makes anew (s).
    """

    kind: Kind
    text: str
    seconds: float
    seed: int
    clips: int
    decoding: DecodingConfig
    recording: Path | None = None
    kept_seconds: float = 0.0
    from_end: bool = True
    region: tuple[float, float] = (0.0, 0.0)

    def check(self) -> None:
        """Raise `UserError` for what can be told without the model."""
        if not 1 <= self.clips <= MOST_CLIPS:
            raise UserError(f"{self.clips} clips are asked for; choose 1 to {MOST_CLIPS}.")
        if not 0 <= self.seed <= LARGEST_SEED - MOST_CLIPS:
            raise UserError(
                f"seed {self.seed} is too large or negative; choose a whole number from 0 to {10**15}."
            )
        if self.kind in (Kind.CONTINUE, Kind.EDIT) and self.recording is None:
            raise UserError("there is no recording yet; drop one into the field Recording.")
        if self.kind is Kind.CONTINUE and not 0 < self.kept_seconds < self.seconds:
            raise UserError(
                f"{self.kept_seconds:g} s are to be kept of a clip of {self.seconds:g} s, which leaves nothing to make; "
                "keep less, or more than 0."
            )


def read_steps(text: str, n_q: int) -> tuple[int, ...]:
    """Read the steps of each codebook, separated by commas or spaces.

    Raises:
        UserError: They are not `n_q` whole numbers in 1..MOST_STEPS.
    """
    words = text.replace(",", " ").split()
    if len(words) != n_q or not all(
        word.isascii() and word.isdigit() and len(word) < 9 and 1 <= int(word) <= MOST_STEPS for word in words
    ):
        raise UserError(
            f"steps '{text[:40]}' should be {n_q} whole numbers from 1 to {MOST_STEPS}, one for each codebook."
        )
    return tuple(map(int, words))


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


def command_line(order: Order, seed: int, source: Source, recording: str | None = None) -> str:
    """Write the command that makes the same clip.

    Args:
        order: What was made.
        seed: The clip's own.
        source: By what.
        recording: File name of the recording, or of the part of it that was kept.
    """
    words: list[str] = ["--model", source.model]
    if source.adapter is not None:
        words += ["--adapter", source.adapter, "--adapter-strength", _number(source.adapter_strength)]
    words += _option("--text", order.text) if order.text else ["--unconditional", "1"]
    if order.kind is not Kind.EDIT:
        words += ["--seconds", _number(order.seconds)]
    if order.kind is Kind.CONTINUE:
        words += _option("--prompt", recording or "")
    if order.kind is Kind.EDIT:
        words += [*_option("--edit", recording or ""), "--region", ":".join(map(_number, order.region))]
    if order.kind is Kind.LOOP:
        words += ["--loop"]
    words += ["--seed", str(seed), *_sampler_words(order.decoding, source.decoding)]
    words += ["--device", source.device, "--out", f"clip_seed_{seed}"]
    return "magnet-train generate " + " ".join(map(shlex.quote, words))


def settings(order: Order, seed: int, source: Source, recording: str | None = None) -> str:
    """Write all that there is to know of a clip: the command, and every setting as a comment of the shell."""
    decoding = order.decoding
    sampling = (
        f"temperature {_number(decoding.temperature)}, top_p {_number(decoding.top_p)}, top_k {decoding.top_k}"
        if decoding.use_sampling
        else "the most probable token each time"
    )
    lines = [
        f"seed {seed}, steps {' '.join(map(str, decoding.decoding_steps))}, {sampling},",
        f"guidance {_number(decoding.max_cfg_coef)} to {_number(decoding.min_cfg_coef)}, "
        f"spans {decoding.span_arrangement}, scored by {decoding.span_scoring},",
        f"magnet-train {source.version} on {source.device}",
    ]
    return "\n".join([command_line(order, seed, source, recording), *(f"# {line}" for line in lines)])


def _sampler_words(decoding: DecodingConfig, own: DecodingConfig) -> list[str]:
    """Name what differs from the model's own settings, of what the page lets one change."""
    words: list[str] = []
    if decoding.decoding_steps != own.decoding_steps:
        words += ["--steps", ",".join(map(str, decoding.decoding_steps))]
    if decoding.temperature != own.temperature:
        words += ["--temperature", _number(decoding.temperature)]
    if decoding.top_p != own.top_p:
        words += ["--top-p", _number(decoding.top_p)]
    guidance = (decoding.max_cfg_coef, decoding.min_cfg_coef)
    if guidance != (own.max_cfg_coef, own.min_cfg_coef):
        words += _option("--cfg", ",".join(map(_number, guidance)))
    return words


def _option(name: str, value: str) -> list[str]:
    """Join what begins with a dash to its option: it would pass for one."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def with_sampler(
    own: DecodingConfig,
    steps: tuple[int, ...],
    temperature: float,
    top_p: float,
    guidance: tuple[float, float],
) -> DecodingConfig:
    """Put the form's settings over the model's own."""
    return replace(
        own,
        decoding_steps=steps,
        temperature=temperature,
        top_p=top_p,
        max_cfg_coef=guidance[0],
        min_cfg_coef=guidance[1],
    )


def _number(value: float) -> str:
    """Write a number so that it reads back as the same one."""
    return repr(float(value)).removesuffix(".0")
