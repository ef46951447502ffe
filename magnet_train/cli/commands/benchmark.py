"""Measure speed side by side with the usual implementation; a ratio is printed only if both give the same result.

train     forward, backward and optimizer, against a naive model of the same weights
generate  tokens with guidance, against the same naive model
loader    batches of tokens and captions, against webdataset on the same shards

The measurements are in benchmarks/harness of the repository, not in the package.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from magnet_train.errors import UserError

HARNESS = Path(__file__).parents[3] / "benchmarks" / "harness"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks; raises `UserError` if the package was installed without the repository."""
    _harness("options").add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print and write; raises `UserError` for options out of range, or if the two sides disagree."""
    _harness("loader_report" if args.what == "loader" else "model_report").run(args)


def _harness(name: str) -> ModuleType:
    if not HARNESS.is_dir():
        raise UserError(
            "benchmark needs the repository: its benchmarks/ folder is not part of the installed package; clone the "
            "repository and run `make install` there."
        )
    if str(HARNESS.parent) not in sys.path:
        sys.path.append(str(HARNESS.parent))
    return importlib.import_module(f"harness.{name}")
