"""Measure speed side by side with the usual way of doing the same; a ratio is printed only if both agree.

train     forward, backward and optimizer, beside a naive model of the same weights
generate  tokens with guidance, beside the same naive model
loader    batches of tokens and captions, beside webdataset on the same shards
"""

from __future__ import annotations

import argparse
from pathlib import Path

from magnet_train.cli import benchmark_loader, benchmark_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be measured, and the options of each."""
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
            benchmark_model,
            benchmark_model.add_train_arguments,
        ),
        (
            "generate",
            "Generation: tokens with guidance, without text encoder and codec.",
            benchmark_model,
            benchmark_model.add_generate_arguments,
        ),
        (
            "loader",
            "The data loader: batches of tokens with their captions.",
            benchmark_loader,
            benchmark_loader.add_arguments,
        ),
    ):
        kind = kinds.add_parser(what, description=f"{measured}\n\n{module.__doc__}")
        kind.formatter_class = argparse.RawDescriptionHelpFormatter
        kind.add_argument(
            "--out", type=Path, metavar="FILE", help="JSON of all numbers, written anew after each of them"
        )
        add_options(kind)


def run(args: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        UserError: Options that do not fit, or the two sides disagree.
    """
    module = benchmark_loader if args.what == "loader" else benchmark_model
    module.run(args)
