"""Show that the whole chain learns: captioned tones are synthesised, tokenized, trained on, generated and scored."""

from __future__ import annotations

import argparse
from pathlib import Path

from magnet_train.cli.formatting import at_least
from magnet_train.errors import require_extra


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train quickstart`."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="output folder (default: runs/quickstart)"
    )
    parser.add_argument(
        "--preset",
        choices=("default", "full"),
        default="default",
        help="default: one sound in 1.28 s, about 5 minutes on two cores; full: one or two sounds in 2.56 s at uneven "
        "times, which takes longer",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of clips, training and generation (default: 0)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the files of an earlier run in --out"
    )
    parser.add_argument(
        "--fit",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="OPTION",
        help="pass all that follows to `magnet-train fit`: --fit --trainer.max_steps 100",
    )


def run(args: argparse.Namespace) -> None:
    """Run the quickstart and print whether the model learned.

    Raises:
        UserError: The folder is not empty, or a command of the chain failed.
    """
    require_extra("matplotlib", "plots", "the quickstart, which draws its results,")
    from magnet_train.apps.quickstart.run import run_quickstart

    run_quickstart(args.out, args.preset, args.seed, args.overwrite, args.fit)
