"""Run all benchmarks that need a GPU, the most important first, and report which goals are met.

    python benchmarks/gpu.py                  # one H100 or H200, bfloat16, the 300M model; about ten minutes
    python benchmarks/gpu.py --tiny           # the same on a CPU with a toy model, to check the script

Each case is a process of its own that writes `results/gpu_CASE.json`: those called `product` are what a user runs, with text
encoder, codec and loader (product.py), the others a `magnet-train benchmark`. No case starts after `--minutes`, so that a
machine borrowed for a quarter of an hour yields as many results as possible.
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
PRODUCT = Path(__file__).parent / "product.py"
GPU = ["--device", "cuda", "--precision", "bfloat16", "--rounds", "5"]
TINY = ["--dim", "32", "--heads", "2", "--layers", "2", "--card", "32", "--rounds", "1"]

# Options by name; `--compile` compiles both sides.
CASES = {
    "product_generate_500_compiled": ["generate", "--frames", "500", "--compile"],
    "product_fit": ["fit", "--batch", "16"],
    "product_generate_1500_compiled": ["generate", "--frames", "1500", "--compile"],
    "product_files": ["files", "--batch", "16"],
    "product_generate_500": ["generate", "--frames", "500"],
    "product_fit_compiled": ["fit", "--batch", "16", "--compile"],
    "product_generate_500_batch_16": ["generate", "--frames", "500", "--batch", "16"],
    "product_generate_1500": ["generate", "--frames", "1500"],
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
    """Return the command of a case."""
    product = case.startswith("product")
    start = [str(PRODUCT)] if product else ["-m", "magnet_train", "benchmark"]
    words = [sys.executable, *start, *CASES[case], "--out", str(out)]
    if not tiny:
        return words + (GPU[:2] if product else GPU)
    # On a CPU, compiling takes longer than the benchmark.
    words = [word for word in words if word != "--compile"]
    if product:
        return [*words, "--tiny", "--steps", "15"]
    if CASES[case][0] == "generate":
        words += ["--steps", "3,2,2,2"]
    return [*words, *TINY, "--frames", "60", "--batch", "2"]  # later options override earlier ones


def whole(results: Path, case: str) -> dict[str, Any]:
    """Return the row of the whole step or generation of a case; empty if it was not measured."""
    path = results / f"gpu_{case}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["cases"][0]["rows"] if path.exists() else []
    ends = [row for row in rows if row["part"] == "step" or row["part"].startswith("generation")]
    return ends[-1] if ends else {}


def goals(results: Path) -> Iterator[tuple[str, float | None, str, float, bool]]:
    """Yield each goal: name, measured value, unit, target, and whether more is better."""

    def best(key: str, *cases: str, more: bool) -> float | None:
        values = [row[key] for case in cases if key in (row := whole(results, case))]
        return (max if more else min)(values) if values else None

    def over_eager_naive(case: str) -> float | None:
        naive, ours = whole(results, case), best("ours_ms", case, f"{case}_compiled", more=False)
        return naive["naive_ms"] / ours if naive and ours else None

    for name, case in (("fit", "product_fit"), ("training step", "train_500")):
        rate = best("frames_per_s", case, f"{case}_compiled", more=True)
        yield f"{name}, T 500, B 16", rate, "frames/s", 180_000, True
    for frames, goal in ((500, 100), (1500, 250)):
        case = f"product_generate_{frames}"
        time_ms = best("ours_ms", case, f"{case}_compiled", more=False)
        yield f"{frames // 50} s of sound by Magnet.generate, B 1, 50 steps", time_ms, "ms", goal, False
        time_ms = best("ours_ms", f"generate_{frames}", f"generate_{frames}_compiled", more=False)
        yield f"{frames // 50} s of tokens, B 1, 50 steps", time_ms, "ms", goal, False
    over = best("percent_over_model", "product_files", more=False)
    yield "64 captions to files, B 16, over the model's own time", over, "%", 5, False
    yield "over eager naive, T 1500, B 1", over_eager_naive("generate_1500"), "x", 4, True
    yield "over eager naive, T 1500, B 16", over_eager_naive("generate_1500_batch_16"), "x", 2, True
    for name, case in (("B 1", "generate_1500_compiled"), ("B 16", "generate_1500_batch_16_compiled")):
        yield f"over compiled naive, T 1500, {name}", best("ratio", case, more=True), "x", 1, True


def main() -> None:
    """Run the cases that there is time for, and print the goals with the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tiny", action="store_true", help="toy size on a CPU; the goals are then meaningless"
    )
    parser.add_argument(
        "--minutes", type=float, default=9, help="start no case after this time (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
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
        if args.tiny:
            met = ""
        elif measured is None:
            met = "not measured"
        else:
            met = "yes" if (measured >= goal) == more else "no"
        table.add_row(name, "" if measured is None else f"{measured:,.4g} {unit}", f"{goal:,} {unit}", met)
    Console().print(table)


if __name__ == "__main__":
    main()
