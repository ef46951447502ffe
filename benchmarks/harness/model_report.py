"""`magnet-train benchmark train` and `generate`: measure, print and write."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness.config import BenchmarkConfig, NotExactError
from harness.generation import measure_generation
from harness.report import Report, make_table, require_at_least
from harness.timing import Clock, Row, gemm_peak, machine
from harness.training import measure_training
from magnet_train.errors import UserError

DATASHEET_PEAK = {"H100": 989e12, "H200": 989e12}  # FLOP/s, dense bf16, from NVIDIA's data sheets


def run(args: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        UserError: Sizes or a device that are out of range, or the two versions disagree.
    """
    steps = _steps(args.steps) if args.what == "generate" else None
    _check(args)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    report = Report(args.what, machine(device), args.out, compiled=args.compile)
    console = Console()
    report.print_machine(console)
    options = {field.name: getattr(args, field.name) for field in fields(BenchmarkConfig)}
    for frames in args.frames:
        config = replace(BenchmarkConfig(**options), frames=frames)
        case: dict[str, Any] = {"setting": asdict(config), "rows": []}
        if steps is not None:
            case["setting"]["decoding_steps"] = steps
        case["gemm_peak_tflops"] = gemm_peak(Clock(device), config.dtype) / 1e12
        report.start_case(case)
        try:
            for row in _rows(config, steps, args.compile):
                case["rows"].append(
                    row | _shares(row, case["gemm_peak_tflops"], report.content["machine"]["device"])
                )
                report.save()
        except NotExactError as error:
            raise UserError(f"{error} Both versions should compute the same: report it.") from error
        console.print(_table(case))
        console.print(_rates(case["rows"][-1]), highlight=False, soft_wrap=True)


def _rows(config: BenchmarkConfig, steps: list[int] | None, compiled: bool) -> Iterator[Row]:
    if steps is None:
        return measure_training(config, compiled)
    return measure_generation(config, tuple(steps), compiled)


def _shares(row: Row, gemm_peak_tflops: float, device: str) -> Row:
    """Return the shares of the measured and the specified peak that a row reaches."""
    if "useful_tflops" not in row:
        return {}
    shares = {"share_of_gemm_peak": row["useful_tflops"] / gemm_peak_tflops}
    for name, peak in DATASHEET_PEAK.items():
        if name in device:
            shares["mfu"] = row["useful_tflops"] * 1e12 / peak
    return shares


def _table(case: dict[str, Any]) -> Table:
    sizes = case["setting"]
    title = f"dim {sizes['dim']}, {sizes['layers']} layers, B {sizes['batch']}, T {sizes['frames']}, {sizes['precision']}"
    table = make_table(title, "part", "naive ms", "ours ms", "ratio", "low", "high")
    for row in case["rows"]:
        if "failed" in row:
            table.add_row(row["part"], row["failed"])
            continue
        cells = [f"{row[name]:.4g}" for name in ("naive_ms", "ours_ms")]
        cells += [f"{row[name]:.2f}" for name in ("ratio", "low", "high")]
        table.add_row(row["part"], *cells)
    return table


def _rates(row: Row) -> str:
    """Return a line with the rates of our version."""
    words = [
        f"{row['frames_per_s']:,.0f} frames/s",
        f"{row['codes_per_s']:,.0f} codes/s",
        f"{row['useful_tflops']:.3g} useful TFLOP/s, {row['share_of_gemm_peak']:.0%} of the GEMM peak",
    ]
    if "mfu" in row:
        words.append(f"MFU {row['mfu']:.0%}")
    if row["ours_peak_bytes"] is not None:
        gib = (row[f"{version}_peak_bytes"] / 2**30 for version in ("ours", "naive"))
        words.append("peak memory {:.2f} GiB, naive {:.2f}".format(*gib))
    return f"{row['part']}: {', '.join(words)}"


def _steps(text: str) -> list[int]:
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError:
        steps = []
    if len(steps) != 4 or min(steps) < 1:
        raise UserError(f"--steps {text} must be four numbers of at least 1, such as 20,10,10,10.")
    return steps


def _check(args: argparse.Namespace) -> None:
    require_at_least(1, args, ("dim", "heads", "layers", "card", "batch", "rounds", "threads"))
    if args.dim % args.heads:
        raise UserError(f"--dim {args.dim} must be a multiple of --heads {args.heads}.")
    if min(args.frames) < 12:
        raise UserError(
            f"--frames {min(args.frames)} is too short for a restricted context; give 12 or more."
        )
    if args.device != "cpu" and not (args.device.startswith("cuda") and torch.cuda.is_available()):
        raise UserError(f"--device {args.device} is not available; use cpu.")
