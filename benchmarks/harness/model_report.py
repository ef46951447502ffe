"""Measure speed side by side with a naive model of the same weights; a ratio is printed only if both agree.

Parts come first: restricted attention, then heads with loss or sampling. On a CPU the ratio is what counts
(CPU time of this process, both versions in turns); on a GPU the times do as well.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from magnet_train.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from harness.config import BenchmarkConfig, Row


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train benchmark generate`."""
    add_train_arguments(parser)
    parser.add_argument(
        "--steps",
        default="20,10,10,10",
        metavar="20,10,10,10",
        help="decoding steps of each codebook (default: %(default)s)",
    )


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train benchmark train`."""
    sizes = parser.add_argument_group("sizes", "the defaults are the 300M model")
    sizes.add_argument("--dim", type=int, default=1024, help="width (default: %(default)s)")
    sizes.add_argument("--heads", type=int, default=16, help="attention heads (default: %(default)s)")
    sizes.add_argument("--layers", type=int, default=24, help="transformer layers (default: %(default)s)")
    sizes.add_argument("--card", type=int, default=2048, help="codebook entries (default: %(default)s)")
    sizes.add_argument(
        "--frames",
        type=int,
        nargs="+",
        default=[500, 1500],
        metavar="T",
        help="lengths of a clip in frames, 50 a second (default: 500 1500)",
    )
    sizes.add_argument("--batch", type=int, default=1, metavar="B", help="clips (default: %(default)s)")
    sizes.add_argument(
        "--text_positions",
        type=int,
        default=24,
        metavar="S",
        help="tokens of a caption (default: %(default)s)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--rounds", type=int, default=5, help="turns of each version (default: %(default)s)")
    how.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    how.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of weights and activations; agreement is checked in float32 all the same (default: %(default)s)",
    )
    how.add_argument("--compile", action="store_true", help="compile both versions; its time is not counted")
    how.add_argument("--threads", type=int, default=1, help="of a CPU (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        UserError: Sizes or a device that do not fit, or the two versions disagree.
    """
    import torch
    from rich.console import Console

    from harness.config import BenchmarkConfig, NotExactError
    from harness.report import Report
    from harness.timing import Clock, gemm_peak, machine

    steps = _steps(args.steps) if args.what == "generate" else None
    _check(args)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    report = Report(args.what, machine(device), args.out, compiled=args.compile)
    console = Console()
    console.print(report.machine_line, highlight=False)
    for frames in args.frames:
        setting = BenchmarkConfig(
            args.dim,
            args.heads,
            args.layers,
            args.card,
            frames,
            args.batch,
            args.text_positions,
            args.rounds,
            args.device,
            args.precision,
        )
        case: dict[str, Any] = {"setting": setting.describe(), "rows": []}
        if steps is not None:
            case["setting"]["decoding_steps"] = steps
        case["gemm_peak_tflops"] = gemm_peak(Clock(device), setting.dtype) / 1e12
        report.start_case(case)
        try:
            for row in _rows(setting, steps, args.compile):
                case["rows"].append(_with_shares(row, case["gemm_peak_tflops"], report.machine["device"]))
                report.save()
        except NotExactError as error:
            raise UserError(f"{error} Both versions should compute the same: report it.") from error
        console.print(_table(case))
        console.print(_rates(case["rows"][-1]), highlight=False, soft_wrap=True)


def _rows(setting: BenchmarkConfig, steps: list[int] | None, compiled: bool) -> Any:
    if steps is None:
        from harness.training import measure_training

        return measure_training(setting, compiled)
    from harness.generation import measure_generation

    return measure_generation(setting, tuple(steps), compiled)


def _with_shares(row: Row, gemm_peak_tflops: float, device: str) -> Row:
    from magnet_train.training.flops import DATASHEET_PEAK

    if "useful_tflops" not in row:
        return row
    shares = {"share_of_gemm_peak": row["useful_tflops"] / gemm_peak_tflops}
    for name, peak in DATASHEET_PEAK.items():
        if name in device:
            shares["mfu"] = row["useful_tflops"] * 1e12 / peak
    return row | shares


def _table(case: dict[str, Any]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    setting = case["setting"]
    table = Table(
        title=f"dim {setting['dim']}, {setting['layers']} layers, B {setting['batch']}, T {setting['frames']}, "
        f"{setting['precision']}",
        title_justify="left",
        box=SIMPLE,
    )
    table.add_column("part", no_wrap=True)
    for column in ("naive ms", "ours ms", "ratio", "low", "high"):
        table.add_column(column, justify="right")
    for row in case["rows"]:
        if "failed" in row:
            table.add_row(row["part"], row["failed"])
            continue
        cells = [f"{row[name]:.4g}" for name in ("naive_ms", "ours_ms")]
        cells += [f"{row[name]:.2f}" for name in ("ratio", "low", "high")]
        table.add_row(row["part"], *cells)
    return table


def _rates(row: Row) -> str:
    """Say in a line how fast ours is."""
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
        raise UserError(f"--steps {text} should be four numbers of at least 1, 20,10,10,10 say.")
    return steps


def _check(args: argparse.Namespace) -> None:
    import torch

    from harness.report import require_at_least

    require_at_least(1, args, ("dim", "heads", "layers", "card", "batch", "rounds", "threads"))
    if args.dim % args.heads:
        raise UserError(f"--dim {args.dim} must be a multiple of --heads {args.heads}.")
    if min(args.frames) < 12:
        raise UserError(
            f"--frames {min(args.frames)} is too short to have a restricted context; give 12 or more."
        )
    if args.device != "cpu" and not (args.device.startswith("cuda") and torch.cuda.is_available()):
        raise UserError(f"--device {args.device} is not there; try cpu.")
