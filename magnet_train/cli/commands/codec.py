"""Make a small EnCodec from a folder of audio, on a CPU and without a network.

`tokenize --codec DIR` takes it like any other codec. Its report.html plays held-out files before and after the codec,
with measures of quality.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from magnet_train.apps.codec_training import SAMPLE_RATES
from magnet_train.cli.options import declare, option, whole_number


def minutes(text: str) -> float:
    """Read a number of minutes, more than 0 and at most a day."""
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 < number <= 1440:
        raise argparse.ArgumentTypeError(f"{number:g} is not above 0 and at most 1440")
    return number


@dataclass(frozen=True)
class CodecRequest:
    """The options of `codec`."""

    audio: str = option(
        "folder of audio, searched recursively, or a table, here or at hf://datasets/OWNER/NAME, as for tokenize; needs no "
        "captions",
        required=True,
        metavar="DIR|FILE",
    )
    out: Path = option("folder for the codec; must be empty or new", required=True, metavar="DIR")
    sample_rate: int = option(
        "rate of the codec (Hz); files of a lower rate are left out, and a higher one needs more minutes",
        choices=SAMPLE_RATES,
        default=16_000,
    )
    codebooks: int = option(
        "number of codebooks: tokens per frame", type=whole_number(1, 16), default=4, metavar="K"
    )
    card: int = option("entries of a codebook", type=whole_number(16, 4096), default=1024, metavar="N")
    minutes: float = option(
        "approximate wall time of the whole command; the number of steps follows from the time of the first ones",
        type=minutes,
        default=10.0,
        metavar="M",
    )
    steps: int | None = option(
        "optimizer steps, instead of as many as the minutes allow; training.json holds the command that makes a codec again",
        type=whole_number(1, 10_000_000),
        metavar="N",
    )
    seed: int = option(
        "seed of the excerpts drawn from the files, of the codebooks and of training",
        type=whole_number(0, 2**32 - 1),
        default=0,
        metavar="N",
    )


add_arguments = declare(CodecRequest)


def run(request: CodecRequest) -> None:
    """Make the codec; raises `UserError` if the folder holds too little sound, or --out cannot be written."""
    from magnet_train.apps.codec_training.run import make_codec, recipe_of

    recipe = recipe_of(request.sample_rate, request.codebooks, request.card)
    make_codec(request.audio, request.out, recipe, request.minutes, request.steps, request.seed)
