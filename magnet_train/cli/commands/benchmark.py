"""Measure speed side by side with the usual way of doing the same; a ratio is printed only if both agree.

train     forward, backward and optimizer, beside a naive model of the same weights
generate  tokens with guidance, beside the same naive model
loader    batches of tokens and captions, beside webdataset on the same shards

The measuring code is benchmarks/harness of the repository, outside the package.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from magnet_train.errors import UserError

HARNESS = Path(__file__).parents[3] / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the three benchmarks, each with its own options.

    Raises:
        UserError: The package was installed without the repository.
    """
    model, loader = _harness("model_report"), _harness("loader_report")
    measured = {
        "train": "A training step: forward, backward and optimizer, for each codebook.",
        "generate": "Generation: tokens with guidance, without text encoder and codec.",
        "loader": "The data loader: batches of tokens with their captions.",
    }
    kinds = parser.add_subparsers(
        dest="what",
        required=True,
        metavar="|".join(measured),
        help="`magnet-train benchmark WHAT --help` lists its options",
    )
    add_options = (model.add_train_arguments, model.add_generate_arguments, loader.add_arguments)
    for (what, description), add, module in zip(
        measured.items(), add_options, (model, model, loader), strict=True
    ):
        kind = kinds.add_parser(what, description=f"{description}\n\n{module.__doc__}")
        kind.formatter_class = argparse.RawDescriptionHelpFormatter
        kind.add_argument(
            "--out", type=Path, metavar="FILE", help="JSON of all numbers, rewritten after each of them"
        )
        add(kind)


def run(args: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        UserError: Options that do not fit, or the two sides disagree.
    """
    _harness("loader_report" if args.what == "loader" else "model_report").run(args)


def _harness(name: str) -> ModuleType:
    if not (HARNESS / "harness").is_dir():
        raise UserError(
            "benchmark runs from the repository, whose benchmarks/ is not part of the installed package; "
            "clone it and run `make install` there."
        )
    if str(HARNESS) not in sys.path:
        sys.path.append(str(HARNESS))
    return importlib.import_module(f"harness.{name}")
