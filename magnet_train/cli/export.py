"""Write a self-contained model folder from a checkpoint: safetensors, config.json, model card."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train export`."""
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="CKPT", help="what `fit` saved, runs/x/last.ckpt"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write; must not hold anything"
    )
    parser.add_argument(
        "--format", choices=["magnet"], default="magnet", help="format of the export (default: magnet)"
    )
    parser.add_argument(
        "--raw", action="store_true", help="take the weights as trained instead of their moving average"
    )
    parser.add_argument(
        "--licence",
        default="unspecified",
        metavar="ID",
        help="licence for the model card, an SPDX id such as CC-BY-4.0",
    )


def run(args: argparse.Namespace) -> None:
    """Read the checkpoint and write the folder.

    Raises:
        UserError: The checkpoint cannot be read or the folder cannot be written.
    """
    from magnet_train.magnet import Magnet
    from magnet_train.models.transformer import count_parameters

    magnet = Magnet.from_pretrained(args.checkpoint, raw=args.raw)
    magnet.save_pretrained(args.out, licence=args.licence)
    print(
        f"wrote {args.out}: {count_parameters(magnet.lm):,} parameters, {'raw' if args.raw else 'averaged'} weights"
    )
    print(f"try it: magnet-train generate --model {args.out} --text '...' --out clips")
