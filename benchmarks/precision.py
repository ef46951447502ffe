"""Compare bfloat16 with float32, and with the naive pattern in float32, on this machine.

    python benchmarks/precision.py                          # dim 1024, 24 layers, T 500, 50 steps: up to an hour
    python benchmarks/precision.py --dim 256 --layers 6     # another model
    python benchmarks/precision.py --wall --threads 2       # seconds of 10 s of sound from the 300M model

Models generate with the weights as `Magnet.from_pretrained(dtype=...)` holds them, and train as `fit` does, in bf16-mixed
and 32-true, with fused AdamW and clipping. Two sides take turns in one process. Unless guided logits and the loss agree
within the rounding of bfloat16, there is no ratio. precision_quality.py compares what they learn.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.config import BenchmarkConfig, require_close
from harness.generation import check_logits
from harness.naive import naive_generate
from harness.product import captions, random_magnet
from harness.quickstart_world import RESULTS, write_json
from harness.timing import Clock, Pair, gemm_peak, machine, time_pair
from harness.training import TrainingBatch, our_step_loss
from magnet_train.decoding import DecodingConfig, clip_generators, generate_tokens
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.models.precision import dtype_name

LOGITS_TOLERANCE = 0.05  # guided by 3
LOSS_TOLERANCE = 2e-3


def generation(
    config: BenchmarkConfig, clock: Clock, steps: tuple[int, ...], naive: bool = True
) -> dict[str, Any]:
    """Generate one clip in both precisions, and with the `naive` pattern.

    Raises:
        NotExactError: The guided logits differ by more than rounding.
    """
    naive_model, lm = config.models()
    models = {"float32": lm.eval(), "bfloat16": copy.deepcopy(lm).eval()}
    models["bfloat16"].convert(torch.bfloat16)
    text, text_mask = config.text()
    logits = [GuidedLogits(model, text, text_mask)(config.tokens(), 1, 3.0) for model in models.values()]
    error = require_close("guided logits", logits[1], logits[0], LOGITS_TOLERANCE)
    decoding = DecodingConfig(decoding_steps=steps)
    # whole spans, which is all that the naive pattern can
    shape = (config.batch, config.N_Q, config.frames - config.frames % config.SPAN_LEN)

    def generate(model: MagnetTransformer) -> None:
        generate_tokens(
            GuidedLogits(model, text, text_mask),
            shape,
            decoding,
            card=config.card,
            span_len=config.SPAN_LEN,
            generator=clip_generators(0, range(config.batch), config.device),
            device=config.device,
        )

    ours = {name: partial(generate, model) for name, model in models.items()}
    pair = time_pair(clock, ours["float32"], ours["bfloat16"], config.rounds, warm_up=0)
    found = {**_summary(pair, "float32"), "logits_error": error}
    if naive:
        check_logits(config, naive_model.eval(), lm)
        usual = partial(naive_generate, naive_model, text, text_mask, shape, decoding, config.SPAN_LEN)
        pair = time_pair(clock, usual, ours["bfloat16"], config.rounds, warm_up=0)
        found["over_naive_float32"] = _summary(pair, "naive_float32")
    return found


def _summary(pair: Pair, other: str) -> dict[str, Any]:
    """Name the sides of a pair: `other`, and bfloat16."""
    times = pair.summary()
    return {f"{other}_ms": times.pop("naive_ms"), "bfloat16_ms": times.pop("ours_ms"), **times}


def training(config: BenchmarkConfig, clock: Clock) -> dict[str, Any]:
    """Make steps over all codebooks in both precisions, each of its own copy of the weights.

    Raises:
        NotExactError: The losses of the first step differ by more than rounding.
    """
    batch = TrainingBatch(config)
    steps, losses = [], []
    for mixed in (False, True):
        _, lm = config.models()
        optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=True)

        def step(
            lm: MagnetTransformer = lm, optimizer: torch.optim.AdamW = optimizer, mixed: bool = mixed
        ) -> float:
            total = torch.zeros(())
            for stage in range(config.N_Q):
                with torch.autocast(config.device, torch.bfloat16, enabled=mixed):
                    loss = our_step_loss(lm, batch, stage)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach().cpu()
            torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return float(total)

        losses.append(torch.tensor(step()))
        steps.append(step)
    error = require_close("losses", losses[1], losses[0], LOSS_TOLERANCE)
    return {**_summary(time_pair(clock, *steps, config.rounds), "float32"), "loss_error": error}


def wall(config: BenchmarkConfig, steps: tuple[int, ...]) -> dict[str, Any]:
    """Measure the seconds by the clock of a clip from `Magnet.generate`, with codec and text encoder, and of its codec."""
    with tempfile.TemporaryDirectory() as folder:
        magnet = random_magnet(Path(folder), config, steps, dtype="auto")
        text = captions(1)
        magnet.codec.decode(magnet.generate_tokens(text, seconds=0.2))  # loads both
        rounds = []
        for number in range(config.rounds):
            began = time.perf_counter()
            tokens = magnet.generate_tokens(text, seed=number)
            between = time.perf_counter()
            magnet.codec.decode(tokens)
            rounds.append({"tokens_s": between - began, "codec_s": time.perf_counter() - between})
        best = min(sum(parts.values()) for parts in rounds)
        return {
            "machine": {**machine(magnet.device), "clock": "wall"},
            "parameters": sum(p.numel() for p in magnet.lm.parameters()),
            "precision": dtype_name(magnet.dtype),
            "sound_s": magnet.segment_duration,
            "best_s": best,
            "rounds": rounds,
        }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("dim", 1024), ("layers", 24), ("frames", 500), ("card", 2048), ("batch", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", default="20,10,10,10")
    parser.add_argument("--train_layers", type=int, default=4, help="fewer, since training takes more memory")
    parser.add_argument("--wall", action="store_true", help="instead: seconds by the clock, codec included")
    parser.add_argument("--out", type=Path, default=RESULTS / "precision.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = BenchmarkConfig(
        **{name: getattr(args, name) for name in ("dim", "layers", "card", "frames", "rounds", "device")},
        heads=max(1, args.dim // 64),
    )
    steps = tuple(int(number) for number in args.steps.split(","))
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if args.wall:
        record[f"wall, {args.threads} threads"] = found = wall(config, steps)
        write_json(args.out, record)
        print(f"{found['sound_s']:g} s of sound in {found['best_s']:.1f} s on {found['machine']['device']}")
        return
    clock = Clock(torch.device(args.device))
    peaks = {dtype_name(dtype): gemm_peak(clock, dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16)}
    setting = {**vars(args), "out": args.out.name}
    record |= {"machine": machine(clock.device), "gemm_gflops": peaks, "setting": setting}
    with torch.no_grad():
        record["generation"] = found = generation(config, clock, steps)
    usual = found["over_naive_float32"]["ratio"]
    print(
        f"generation: bfloat16 is {found['ratio']:.2f} times as fast, {usual:.2f} times the naive pattern in float32"
    )
    write_json(args.out, record)
    layers = min(args.layers, args.train_layers)
    record["training"] = training(replace(config, layers=layers, batch=args.batch), clock)
    print(f"training step of {layers} layers: bf16-mixed is {record['training']['ratio']:.2f} times as fast")
    write_json(args.out, record)


if __name__ == "__main__":
    main()
