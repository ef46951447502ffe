"""Compare bfloat16 with float32 on this machine, in generation and in training.

    python benchmarks/precision.py                          # dim 1024, 24 layers, T 500, 50 steps: minutes to half an hour
    python benchmarks/precision.py --dim 256 --layers 6     # another model
    python benchmarks/precision.py --quality runs/quickstart/run/last.ckpt  # what the oracle hears in both precisions

Both generate with the weights as `Magnet.from_pretrained(dtype=...)` holds them, and train as `fit` does, in bf16-mixed and
32-true, with fused AdamW and clipping. They take turns in one process. Unless guided logits and the loss agree within the
rounding of bfloat16, there is no ratio.
"""

from __future__ import annotations

import argparse
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.config import BenchmarkConfig, require_close
from harness.quickstart_world import RESULTS, scores, write_json
from harness.timing import Clock, Pair, gemm_peak, machine, time_pair
from harness.training import TrainingBatch, our_step_loss
from magnet_train import Magnet
from magnet_train.apps.quickstart.oracle import read_clips
from magnet_train.apps.quickstart.world import PRESETS, ToneWorld
from magnet_train.decoding import DecodingConfig, clip_generators, generate_tokens
from magnet_train.models import GuidedLogits, MagnetTransformer

LOGITS_TOLERANCE = 0.05  # guided by 3
LOSS_TOLERANCE = 2e-3


def generation(config: BenchmarkConfig, clock: Clock, steps: tuple[int, ...]) -> dict[str, Any]:
    """Generate one clip in both precisions.

    Raises:
        NotExactError: The guided logits differ by more than rounding.
    """
    _, lm = config.models()
    models = {"float32": lm.eval(), "bfloat16": copy.deepcopy(lm).eval()}
    models["bfloat16"].convert(torch.bfloat16)
    text, text_mask = config.text()
    logits = [GuidedLogits(model, text, text_mask)(config.tokens(), 1, 3.0) for model in models.values()]
    error = require_close("guided logits", logits[1], logits[0], LOGITS_TOLERANCE)

    def generate(model: MagnetTransformer) -> None:
        generate_tokens(
            GuidedLogits(model, text, text_mask),
            (config.batch, config.N_Q, config.frames),
            DecodingConfig(decoding_steps=steps),
            card=config.card,
            span_len=config.SPAN_LEN,
            generator=clip_generators(0, range(config.batch), config.device),
            device=config.device,
        )

    pair = time_pair(
        clock, *(partial(generate, model) for model in models.values()), config.rounds, warm_up=0
    )
    return {**_summary(pair), "logits_error": error}


def _summary(pair: Pair) -> dict[str, Any]:
    times = pair.summary()
    return {"float32_ms": times.pop("naive_ms"), "bfloat16_ms": times.pop("ours_ms"), **times}


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
    return {**_summary(time_pair(clock, *steps, config.rounds)), "loss_error": error}


def quality(checkpoint: Path, preset: str, clips: int) -> dict[str, Any]:
    """Return the oracle's accuracy for the same captions and seeds in both precisions, and the share of equal tokens."""
    captions = ToneWorld(preset).captions(clips, "test")
    results, tokens = {}, []
    for dtype in ("float32", "bfloat16"):
        magnet = Magnet.from_pretrained(checkpoint, dtype=dtype)
        tokens.append(magnet.generate_tokens([caption.text for caption in captions], seed=0))
        readings = read_clips(magnet.codec.decode(tokens[-1])[:, 0].numpy())
        results[dtype] = {name: round(share, 3) for name, share in scores(captions, readings).items()}
    return {"clips": clips, **results, "equal_tokens": float((tokens[0] == tokens[1]).float().mean())}


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
    parser.add_argument(
        "--quality", type=Path, metavar="CKPT", help="instead: accuracy of this quickstart model"
    )
    parser.add_argument("--preset", choices=PRESETS, default="default", help="the world of that model")
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--out", type=Path, default=RESULTS / "precision.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quality is not None:
        record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        record[f"quality, {args.preset}"] = measured = quality(args.quality, args.preset, args.clips)
        print(json.dumps(measured, indent=1))
        write_json(args.out, record)
        return
    _measure_speed(args)


def _measure_speed(args: argparse.Namespace) -> None:
    clock = Clock(torch.device(args.device))
    shared: dict[str, Any] = {
        **{"dim": args.dim, "heads": max(1, args.dim // 64), "card": args.card, "frames": args.frames},
        **{"rounds": args.rounds, "device": args.device},
    }
    peaks = {str(dtype)[6:]: gemm_peak(clock, dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16)}
    record: dict[str, Any] = {
        "machine": machine(clock.device),
        "gemm_gflops": peaks,
        "setting": vars(args) | {},
    }
    record["setting"]["out"] = args.out.name
    steps = tuple(int(number) for number in args.steps.split(","))
    with torch.no_grad():
        record["generation"] = generation(BenchmarkConfig(**shared, layers=args.layers), clock, steps)
    print(f"generation: bfloat16 is {record['generation']['ratio']:.2f} times as fast", flush=True)
    write_json(args.out, record)
    layers = min(args.layers, args.train_layers)
    record["training"] = training(BenchmarkConfig(**shared, layers=layers, batch=args.batch), clock)
    print(f"training step of {layers} layers: bf16-mixed is {record['training']['ratio']:.2f} times as fast")
    write_json(args.out, record)


if __name__ == "__main__":
    main()
