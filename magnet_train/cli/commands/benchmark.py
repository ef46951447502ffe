"""Measure speed side by side with the usual way of doing the same; a ratio is printed only if both agree.

train     forward, backward and optimizer, beside a naive model of the same weights
generate  tokens with guidance, beside the same naive model
loader    batches of tokens and captions, beside webdataset on the same shards

What is measured lies in benchmarks/harness of the repository, not in the package.
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
    """Declare what can be measured, and the options of each.

    Raises:
        UserError: The package was installed without the repository.
    """
    model_report, loader_report = _harness("model_report"), _harness("loader_report")
    kinds = parser.add_subparsers(
        dest="what",
        required=True,
        metavar="train|generate|loader",
        help="`magnet-train benchmark WHAT --help` lists its options",
    )
    for what, measured, module, add_options in (
        (
            "train",
            "A training step: forward, backward and optimizer, for each codebook.",
            model_report,
            model_report.add_train_arguments,
        ),
        (
            "generate",
            "Generation: tokens with guidance, without text encoder and codec.",
            model_report,
            model_report.add_generate_arguments,
        ),
        (
            "loader",
            "The data loader: batches of tokens with their captions.",
            loader_report,
            loader_report.add_arguments,
        ),
    ):
        kind = kinds.add_parser(what, description=f"{measured}\n\n{module.__doc__}")
        kind.formatter_class = argparse.RawDescriptionHelpFormatter
        kind.add_argument(
            "--out", type=Path, metavar="FILE", help="JSON of all numbers, rewritten after each of them"
        )
        add_options(kind)


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
