"""Measure everything that needs a GPU, most wanted first, and say which goals are met.

    python benchmarks/gpu.py                  # one H100 or H200, bfloat16, the 300M model; about ten minutes
    python benchmarks/gpu.py --tiny           # the same on a CPU with a model of toy size: does the script work?

Each case is a `magnet-train benchmark` of its own and leaves `results/gpu_CASE.json` as soon as it has a number. A case
is not begun once `--minutes` are over, so that a machine that is lent for a quarter of an hour gives what it can.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
GPU = ["--device", "cuda", "--precision", "bfloat16", "--rounds", "5"]
TINY = ["--dim", "32", "--heads", "2", "--layers", "2", "--card", "32", "--rounds", "1"]

# name, options; what is compiled is so on both sides
CASES = {
    "generate_500_compiled": ["generate", "--frames", "500", "--compile"],
    "train_500": ["train", "--frames", "500", "--batch", "16"],
    "generate_1500_compiled": ["generate", "--frames", "1500", "--compile"],
    "generate_1500": ["generate", "--frames", "1500"],
    "train_500_compiled": ["train", "--frames", "500", "--batch", "16", "--compile"],
    "generate_1500_batch_16": ["generate", "--frames", "1500", "--batch", "16"],
    "generate_1500_batch_16_compiled": ["generate", "--frames", "1500", "--batch", "16", "--compile"],
    "generate_500": ["generate", "--frames", "500"],
}


def command(case: str, out: Path, tiny: bool) -> list[str]:
    """Return the words that measure a case."""
    words = [sys.executable, "-m", "magnet_train", "benchmark", *CASES[case], "--out", str(out)]
    if not tiny:
        return words + GPU
    if words[4] == "generate":
        words += ["--steps", "3,2,2,2"]
    # What argparse reads last counts; compiling for a CPU takes longer than it shows.
    words = [word for word in words if word != "--compile"]
    return [*words, *TINY, "--frames", "60", "--batch", "2"]


def whole(results: Path, case: str) -> dict[str, Any]:
    """Return the row of a case's whole step or generation; empty if it was not measured."""
    path = results / f"gpu_{case}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["cases"][0]["rows"] if path.exists() else []
    ends = [row for row in rows if row["part"] == "step" or row["part"].startswith("generation")]
    return ends[-1] if ends else {}


def goals(results: Path) -> Iterator[tuple[str, float | None, str, float, bool]]:
    """Yield what is wanted, what was measured, its unit, the goal, and whether more is better."""

    def best(key: str, *cases: str, more: bool) -> float | None:
        values = [row[key] for case in cases if key in (row := whole(results, case))]
        return (max if more else min)(values) if values else None

    def over_eager_naive(case: str) -> float | None:
        naive, ours = whole(results, case), best("ours_ms", case, f"{case}_compiled", more=False)
        return naive["naive_ms"] / ours if naive and ours else None

    yield (
        "training, T 500, B 16",
        best("frames_per_s", "train_500", "train_500_compiled", more=True),
        "frames/s",
        180_000,
        True,
    )
    for frames, goal in ((500, 100), (1500, 250)):
        cases = (f"generate_{frames}", f"generate_{frames}_compiled")
        yield (
            f"{frames // 50} s of tokens, B 1, 50 steps",
            best("ours_ms", *cases, more=False),
            "ms",
            goal,
            False,
        )
    yield "over eager naive, T 1500, B 1", over_eager_naive("generate_1500"), "x", 4, True
    yield "over eager naive, T 1500, B 16", over_eager_naive("generate_1500_batch_16"), "x", 2, True
    for name, case in (("B 1", "generate_1500_compiled"), ("B 16", "generate_1500_batch_16_compiled")):
        yield f"over compiled naive, T 1500, {name}", best("ratio", case, more=True), "x", 1, True


def main() -> None:
    """Measure what there is time for and print the goals beside what was reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="toy size on a CPU; goals then mean nothing")
    parser.add_argument(
        "--minutes", type=float, default=9, help="no case begins later (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for case in CASES:
        if time.monotonic() - began > 60 * args.minutes:
            print(f"{case}: no time left")
            continue
        words = command(case, args.results / f"gpu_{case}.json", args.tiny)
        print(f"\n{case}: {' '.join(words[1:])}", flush=True)
        if subprocess.run(words, check=False).returncode != 0:
            print(f"{case}: failed", flush=True)
    table = Table("goal", "measured", "wanted", "met")
    for name, measured, unit, goal, more in goals(args.results):
        met = (
            ""
            if args.tiny
            else "not measured"
            if measured is None
            else "yes"
            if (measured >= goal) == more
            else "no"
        )
        table.add_row(name, "" if measured is None else f"{measured:,.4g} {unit}", f"{goal:,} {unit}", met)
    Console().print(table)


if __name__ == "__main__":
    main()
