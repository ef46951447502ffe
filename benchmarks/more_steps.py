"""Compute the time of a generation of more steps from the measured times of each kind of step.

    magnet-train benchmark generate --frames 1500 --steps 3,2,2,2 --rounds 2 --out few.json
    python benchmarks/more_steps.py few.json --steps 20,10,10,10

A step of 24 layers takes seconds to minutes on a CPU. There are two kinds, each of steps that take equally long: the last
step of a codebook, without guidance and for few frames, and all others. The output is computed, not measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean


def kinds(step_ms: Sequence[float], decoding_steps: Sequence[int]) -> Iterator[tuple[float, float]]:
    """Yield for each codebook the mean time of its guided steps, and the time of its last one."""
    start = 0
    for steps in decoding_steps:
        if steps < 2:
            raise ValueError(
                "a codebook of one step has no last step without guidance; measure at least two."
            )
        yield mean(step_ms[start : start + steps - 1]), step_ms[start + steps - 1]
        start += steps


def total_ms(step_ms: Sequence[float], measured: Sequence[int], wanted: Sequence[int]) -> float:
    """Compute the time of a generation of `wanted` steps from the steps of a `measured` one."""
    parts = zip(kinds(step_ms, measured), wanted, strict=True)
    return sum((steps - 1) * guided + last for (guided, last), steps in parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each case of a report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="JSON of `magnet-train benchmark generate`")
    parser.add_argument(
        "--steps", default="20,10,10,10", help="steps of each codebook (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    wanted = [int(steps) for steps in args.steps.split(",")]
    for case in json.loads(args.report.read_text())["cases"]:
        setting, row = case["setting"], case["rows"][-1]
        measured = setting["decoding_steps"]
        naive, ours = (total_ms(row[f"{name}_step_ms"], measured, wanted) for name in ("naive", "ours"))
        print(
            f"dim {setting['dim']}, {setting['layers']} layers, B {setting['batch']}, T {setting['frames']}, "
            f"{sum(wanted)} steps, computed from {sum(measured)}: "
            f"naive {naive / 1000:.1f} s, ours {ours / 1000:.1f} s, ratio {naive / ours:.2f}"
        )


if __name__ == "__main__":
    main()
