"""Measure where the time of bfloat16 goes, and how near it comes to a plain matrix product.

    python benchmarks/operations.py                          # dim 1024, 4 layers, T 500: seconds of CPU time
    python benchmarks/operations.py --dim 256 --layers 6     # another model
    python benchmarks/operations.py --tiny                   # a toy model, to check the script

A generation of one clip with guidance, and a training step of each kind of codebook, on one thread of a CPU. Shares of
the time are of torch's profiler. The share of the peak is of CPU time without the profiler: FLOPs that the model needs by
its definition (`training/cost.py`), over those of a product of two 1024 x 1024 matrices in bfloat16 in the same run.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from harness.config import BenchmarkConfig
from harness.generation import generation_flops
from harness.quickstart_world import RESULTS, write_json
from harness.timing import Clock, gemm_peak, machine
from harness.training import TrainingBatch, our_step_loss
from magnet_train.decoding import DecodingConfig, clip_generators, generate_tokens
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.training.cost import Pass, training_flops

# What an operation counts as: the first whose words its name holds, after heads and what has the width of a codebook.
KINDS = {
    "attention": ("scaled_dot_product", "bmm", "softmax"),
    "products with weights": ("mm",),
    "norms and GELU": ("layer_norm", "gelu"),
    "optimizer and clipping": ("adamw", "foreach", "norm"),
    "casts, copies and fills": ("copy", "fill", "cat", "zero", "index", "gather", "embedding"),
}


def kind_of(name: str, shapes: list[list[int]], card: int) -> str:
    """Return what an operation of the profiler counts as, given the shapes of its inputs."""
    product = name in ("aten::mm", "aten::addmm")
    if any((shape and shape[-1] == card) or (product and card in shape) for shape in shapes):
        return "heads" if product else "noise, guidance, softmax or loss over a codebook"
    found = (kind for kind, words in KINDS.items() if any(word in name.lower() for word in words))
    return next(found, "everything else")


def measure(
    work: Callable[[], object], flops: float, config: BenchmarkConfig, clock: Clock
) -> dict[str, Any]:
    """Time `work`, then profile it."""
    work()
    seconds = [clock.time(work) for _ in range(config.rounds)]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        work()
    times: Counter[str] = Counter()
    for event in profiled.key_averages(group_by_input_shape=True):
        times[kind_of(event.key, event.input_shapes, config.card)] += event.self_cpu_time_total
    peak = gemm_peak(clock, torch.bfloat16)
    return {
        "ms": 1000 * median(seconds),
        "gflop": flops / 1e9,
        "gemm_gflops": peak / 1e9,
        "share_of_gemm_peak": flops / median(seconds) / peak,
        "shares": {kind: time / times.total() for kind, time in times.most_common()},
    }


def generation(config: BenchmarkConfig, clock: Clock, steps: tuple[int, ...]) -> dict[str, Any]:
    """Measure a generation with the weights as `Magnet.from_pretrained(dtype="bfloat16")` holds them."""
    _, lm = config.models()
    lm.eval().convert(torch.bfloat16)
    text, text_mask = config.text()
    decoding = DecodingConfig(decoding_steps=steps)

    @torch.no_grad()
    def work() -> None:
        generate_tokens(
            GuidedLogits(lm, text, text_mask),
            (config.batch, config.N_Q, config.frames),
            decoding,
            card=config.card,
            span_len=config.SPAN_LEN,
            generator=clip_generators(0, range(config.batch), config.device),
        )

    return measure(work, generation_flops(config, decoding), config, clock)


def training(config: BenchmarkConfig, clock: Clock, stage: int) -> dict[str, Any]:
    """Measure a bf16-mixed training step of one codebook, with fused AdamW and clipping."""
    _, lm = config.models()
    batch = TrainingBatch(config)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=True)
    sizes = (config.batch, len(batch.rows), config.frames, config.text_positions, len(batch.positions))
    flops = training_flops(config.lm_config, Pass(stage, *sizes))
    return measure(partial(_step, lm, batch, optimizer, stage), flops, config, clock)


def _step(lm: MagnetTransformer, batch: TrainingBatch, optimizer: torch.optim.Optimizer, stage: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = our_step_loss(lm, batch, stage)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("dim", 1024), ("layers", 4), ("frames", 500), ("batch", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", default="4,2,2,2")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "operations.json")
    args = parser.parse_args()
    if 4 * args.dim == BenchmarkConfig.card or args.dim == BenchmarkConfig.card:
        parser.error(f"--dim {args.dim}: heads could not be told from other products; take another width")
    torch.set_num_threads(1)
    sizes = {name: getattr(args, name) for name in ("dim", "layers", "frames", "batch", "rounds")}
    if args.tiny:
        sizes |= {"dim": 64, "layers": 1, "frames": 60, "batch": 2, "rounds": 1}
    config = BenchmarkConfig(**sizes, heads=max(1, sizes["dim"] // 64))
    clock, steps = Clock(torch.device("cpu")), tuple(map(int, args.steps.split(",")))
    cases = {
        "generation": generation(replace(config, batch=1), clock, steps),
        "training, first codebook": training(config, clock, 0),
        "training, restricted codebook": training(config, clock, 2),
    }
    for name, found in cases.items():
        print(f"{name}: {found['ms']:,.0f} ms, {found['share_of_gemm_peak']:.0%} of the GEMM peak")
        for kind, share in found["shares"].items():
            print(f"  {share:6.1%}  {kind}")
    setting = {**sizes, "steps": steps}
    write_json(args.out, {"machine": machine(clock.device), "setting": setting, "cases": cases})


if __name__ == "__main__":
    main()
