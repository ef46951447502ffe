"""Run the whole chain on synthetic sound: captioned tones are made, tokenized, trained on, generated and checked."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from magnet_train.cli.options import whole_number
from magnet_train.errors import require_extra


@dataclass(frozen=True)
class QuickstartRequest:
    """The options of `quickstart`."""

    out: Path
    preset: str
    seed: int
    overwrite: bool
    fit: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train quickstart`."""
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        metavar="DIR",
        help="folder for all results (default: %(default)s)",
    )
    add(
        "--preset",
        choices=("default", "full"),
        default="default",
        help="default: one sound in 1.28 s, about 5 minutes on two cores; full: one or two sounds in 2.56 s, at uneven "
        "times, which takes longer",
    )
    add(
        "--seed",
        type=whole_number(0),
        default=0,
        help="seed of sounds, training and generation (default: 0)",
    )
    add("--overwrite", action="store_true", help="remove the results of an earlier run in --out")
    add(
        "--fit",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="OPTION",
        help="all following words go to `magnet-train fit`: --fit --trainer.max_steps 100",
    )


def run(args: argparse.Namespace) -> None:
    """Run it and report whether the model learned.

    Raises:
        UserError: The folder is not empty, or a command of the chain failed.
    """
    require_extra("matplotlib", "plots", "the quickstart, which draws its results,")
    request = QuickstartRequest(**vars(args))
    from magnet_train.apps.quickstart.run import run_quickstart

    run_quickstart(request.out, request.preset, request.seed, request.overwrite, request.fit)
