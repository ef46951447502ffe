"""Run the quickstart on tones, the world of the other benchmarks.

    python benchmarks/tones.py --out runs/tones                   # 1.28 s, one sound: minutes
    python benchmarks/tones.py --out runs/full --preset full      # 2.56 s, one sound or two at uneven times: an hour

Output and report are those of `magnet-train quickstart` (docs/quickstart.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.tones.presets import FIT, QUICKSTARTS
from magnet_train.apps.quickstart.run import run_quickstart


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--preset", choices=QUICKSTARTS, default="default", help="which (default: default)")
    parser.add_argument("--seed", type=int, default=0, help="of clips, training and generation (default: 0)")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the files of an earlier run in --out"
    )
    parser.add_argument(
        "--fit", nargs=argparse.REMAINDER, default=[], help="pass all that follows to `magnet-train fit`"
    )
    args = parser.parse_args(argv)
    fit = [*FIT[args.preset], *args.fit]
    run_quickstart(args.out, QUICKSTARTS[args.preset], args.seed, args.overwrite, fit)


if __name__ == "__main__":
    main()
