"""Options of `magnet-train benchmark`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_MODEL = """Measure speed side by side with a naive model of the same weights; a ratio is printed only if both
give the same result.

Parts come first: restricted attention, then heads with loss or sampling. On a CPU only the ratio counts (CPU time of
this process, both versions in turns); on a GPU the times count as well."""
_LOADER = """Measure the data loader side by side with webdataset on the same shards; a ratio is printed only if both
give the same result.

Ours reads in shuffled order, checks every token and draws the mask noise; webdataset reads from front to back,
decoded as in its documentation or by hand. Ratios are of CPU time in one process without workers, both sides in
turns. With workers, clips/s are by the wall clock."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be measured, and the options of each."""
    kinds = parser.add_subparsers(
        dest="what",
        required=True,
        metavar="train|generate|loader",
        help="`magnet-train benchmark WHAT --help` lists its options",
    )
    for what, measured, description in (
        ("train", "A training step: forward, backward and optimizer, for each codebook.", _MODEL),
        ("generate", "Generation: tokens with guidance, without text encoder and codec.", _MODEL),
        ("loader", "The data loader: batches of tokens with their captions.", _LOADER),
    ):
        kind = kinds.add_parser(what, description=f"{measured}\n\n{description}")
        kind.formatter_class = argparse.RawDescriptionHelpFormatter
        kind.add_argument(
            "--out", type=Path, metavar="FILE", help="JSON of all numbers, rewritten after each of them"
        )
        if what == "loader":
            _add_loader_options(kind)
        else:
            _add_model_options(kind, generate=what == "generate")


def _add_model_options(parser: argparse.ArgumentParser, generate: bool) -> None:
    sizes = parser.add_argument_group("sizes", "the defaults are the 300M model")
    _add_int(sizes, "--dim", 1024, "width")
    _add_int(sizes, "--heads", 16, "attention heads")
    _add_int(sizes, "--layers", 24, "transformer layers")
    _add_int(sizes, "--card", 2048, "codebook entries")
    _add_int(
        sizes, "--frames", [500, 1500], "lengths of a clip in frames, 50 a second", nargs="+", metavar="T"
    )
    _add_int(sizes, "--batch", 1, "clips", metavar="B")
    _add_int(sizes, "--text_positions", 24, "tokens of a caption", metavar="S")
    how = parser.add_argument_group("how")
    _add_int(how, "--rounds", 5, "turns of each version")
    how.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    how.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of weights and activations; agreement is always checked in float32 (default: %(default)s)",
    )
    how.add_argument("--compile", action="store_true", help="compile both versions, outside the timing")
    _add_int(how, "--threads", 1, "of a CPU")
    if generate:
        parser.add_argument(
            "--steps",
            default="20,10,10,10",
            metavar="20,10,10,10",
            help="decoding steps of each codebook (default: %(default)s)",
        )


def _add_loader_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [SHARDS ...] [options]"
    parser.add_argument(
        "shards",
        nargs="*",
        metavar="SHARDS",
        help="folders of your own tokens, each measured by itself; hf://, s3:// and https:// are copied to the "
        "cache first (default: made-up clips)",
    )
    clips = "made-up clips to write; of SHARDS, the first shards with at least this many clips are used"
    frames = "length of made-up clips and of the rows of a batch, 50 frames a second; other clips are cropped or padded"
    batch = "clips in a batch; plain reading and workers are measured with the first"
    _add_int(parser, "--clips", 8192, clips, metavar="N")
    _add_int(parser, "--frames", 500, frames, metavar="T")
    _add_int(parser, "--batch", [72, 8], batch, nargs="+", metavar="B")
    _add_int(
        parser, "--workers", [0, 1, 2, 4], "loader processes, a row for each number", nargs="*", metavar="N"
    )
    _add_int(parser, "--rounds", 9, "turns of each side, about 2048 clips each", metavar="N")
    parser.add_argument(
        "--million",
        action="store_true",
        help="also open a million clips of 50 frames, which takes 3 GB of disk and some minutes to write",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder that keeps made-up clips for the next time (default: a temporary folder)",
    )


def _add_int(
    parser: argparse._ActionsContainer, name: str, default: int | list[int], text: str, **options: Any
) -> None:
    words = default if isinstance(default, int) else " ".join(map(str, default))
    parser.add_argument(name, type=int, default=default, help=f"{text} (default: {words})", **options)
