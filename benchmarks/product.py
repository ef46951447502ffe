"""Measure what a user runs: `Magnet.generate` with text encoder and codec, `generate` of many clips, `fit` with its loader.

    python benchmarks/product.py generate --frames 1500 --compile --device cuda   # 30 s of sound from the 300M model
    python benchmarks/product.py files --batch 16 --device cuda                   # 64 captions to files, and the model alone
    python benchmarks/product.py files --dim 256 --layers 6                       # the same on a CPU, with a smaller model
    python benchmarks/product.py fit --device cuda                                # training steps of 16 clips of 10 s
    python benchmarks/product.py generate --tiny                                  # a toy model, to check the script

The weights are random, and the text encoder and the codec of the sizes of T5-base and facebook/encodec_32khz. Times are by
the clock. Precision is what the command chooses by itself: bfloat16 where the device has it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from harness.config import BenchmarkConfig
from harness.loader_pipelines import make_shards
from harness.product import captions, random_magnet, write_text_encoder
from harness.quickstart_world import command, option_words, write_json
from harness.timing import machine, spread
from magnet_train.apps.quickstart.report import read_metrics
from magnet_train.models.precision import dtype_name
from magnet_train.pipeline import magnet as product_path
from magnet_train.pipeline.parts import ModelParts
from magnet_train.pipeline.request import ClipRequest

STEPS = {False: (20, 10, 10, 10), True: (3, 2, 2, 2)}  # of a real and a tiny model
LOG_EVERY = 5


def generation(
    config: BenchmarkConfig, folder: Path, compiled: bool, tiny: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Generate clips from captions to audio on the CPU; return the setting and the row."""
    magnet = random_magnet(folder, config, STEPS[tiny], dtype="auto", small=tiny)
    compile_s = magnet.compile() if compiled else 0.0
    texts = captions(config.batch)
    for _ in range(2):  # loads text encoder and codec, and compiles what is left
        magnet.generate(texts, seed=0)
    whole, codec = [], []
    for seed in range(config.rounds):
        began = time.perf_counter()
        magnet.generate(texts, seed=seed)
        whole.append(time.perf_counter() - began)
        tokens = magnet.generate_tokens(texts, seed=seed)
        _wait(magnet.device)
        began = time.perf_counter()
        magnet.codec.decode(tokens).cpu()
        codec.append(time.perf_counter() - began)
    seconds = median(whole)
    row = {
        "part": "generation, text to audio",
        **spread("ours_ms", [1000 * round_ for round_ in whole]),
        "codec_ms": 1000 * median(codec),
        "times_real_time": config.batch * magnet.segment_duration / seconds,
        "frames_per_s": config.batch * config.frames / seconds,
    }
    return {"precision": dtype_name(magnet.dtype), "compile_s": compile_s, "steps": STEPS[tiny]}, row


def files(
    config: BenchmarkConfig, folder: Path, clips: int, tiny: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run `generate` on `clips` captions; return the setting and the row, with the time beyond the model's own.

    The first batch, which loads text encoder and codec, does not count.
    """
    steps, model = STEPS[tiny], folder / "model"
    random_magnet(folder, replace(config, device="cpu"), steps, dtype="float32", small=tiny).save_pretrained(
        model
    )
    (folder / "captions.txt").write_text("\n".join(captions(clips)), encoding="utf-8")
    marks: list[tuple[float, float]] = []  # begin and end of each call of the model
    make_tokens = product_path.make_tokens

    def timed(parts: ModelParts, request: ClipRequest) -> Tensor:
        began = time.perf_counter()
        tokens = make_tokens(parts, request)
        _wait(parts.device)
        marks.append((began, time.perf_counter()))
        return tokens

    options = {
        "model": model,
        "prompts": folder / "captions.txt",
        "out": folder / "clips",
        "device": config.device,
    }
    with patch.object(product_path, "make_tokens", timed):
        command("generate", *option_words(options | {"batch_size": config.batch}))
    seconds = time.perf_counter() - marks[1][0]
    own = sum(end - begin for begin, end in marks[1:])
    row = {
        "part": "generation, captions to files",
        "ours_ms": 1000 * seconds,
        "model_ms": 1000 * own,
        "percent_over_model": 100 * (seconds / own - 1),
        "frames_per_s": clips * (1 - 1 / len(marks)) * config.frames / seconds,
    }
    return {"clips": clips, "steps": steps}, row


def training(
    config: BenchmarkConfig, folder: Path, steps: int, compiled: bool, tiny: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train with `fit` on made-up shards; return the setting and the row, without the first logging steps."""
    shards = make_shards(folder / "shards", clips=40 if tiny else 4000, frames=config.frames)
    device = "cpu" if config.device == "cpu" else "one_gpu"
    configs = ["base.yaml", "quickstart.yaml" if tiny else "model_scale/small.yaml", f"trainer/{device}.yaml"]
    options: dict[str, object] = {
        "run": folder / "run",
        "data.shards": shards,
        "data.segment_duration": config.frames / 50,
        "data.batch_size": config.batch,
        "model.lm.dim": config.dim,
        "model.lm.num_heads": config.heads,
        "model.lm.num_layers": config.layers,
        "model.compile": str(compiled).lower(),
        "trainer.max_steps": steps,
        "trainer.log_every_n_steps": LOG_EVERY,
        "trainer.limit_val_batches": 0,
        "trainer.enable_checkpointing": "false",
    }
    if not tiny:
        options["model.text.name"] = write_text_encoder(folder / "text")
    chosen = [word for name in configs for word in ("-c", f"configs/{name}")]
    command("fit", *chosen, *option_words(options))
    metrics = read_metrics(folder / "run" / "metrics.csv", "speed/")
    rates = [
        rate / config.N_Q for rate in metrics["tokens_per_second"][1]
    ]  # frames of a clip have N_Q tokens
    rates = rates[len(rates) // 3 :]
    mfu = metrics.get("mfu", ([], []))[1]
    row = {
        "part": "step",
        "ours_ms": 1000 * config.batch * config.frames / median(rates),
        **spread("frames_per_s", rates),
        **({"mfu": median(mfu[len(mfu) // 3 :])} if mfu else {}),
    }
    return {"configs": configs, "steps": steps}, row


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["generate", "files", "fit"])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--frames", type=int, default=500, help="of a clip, 50 a second")
    parser.add_argument("--batch", type=int, help="clips (default: 1, or 16 a training step)")
    parser.add_argument("--clips", type=int, default=64, help="of `files`")
    parser.add_argument("--rounds", type=int, default=5, help="generations that are timed")
    parser.add_argument("--steps", type=int, default=60, help="of training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a toy model on a CPU; the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    sizes: dict[str, Any] = {"frames": args.frames, "rounds": args.rounds, "device": args.device}
    sizes |= {"dim": args.dim, "heads": max(1, args.dim // 64), "layers": args.layers}
    sizes["batch"] = args.batch or (1 if args.what == "generate" else 16)
    if args.tiny:
        sizes |= {
            "dim": 32,
            "heads": 2,
            "layers": 2,
            "frames": 64,
            "batch": min(sizes["batch"], 2),
            "rounds": 1,
        }
    config = BenchmarkConfig(**sizes)
    with tempfile.TemporaryDirectory() as work:
        if args.what == "generate":
            setting, row = generation(config, Path(work), args.compile, args.tiny)
        elif args.what == "files":
            setting, row = files(config, Path(work), 4 if args.tiny else args.clips, args.tiny)
        else:
            setting, row = training(config, Path(work), args.steps, args.compile, args.tiny)
    print(f"{args.what}: {row['ours_ms']:,.1f} ms, {row['frames_per_s']:,.0f} frames/s")
    if "percent_over_model" in row:
        print(f"{row['percent_over_model']:.1f} % over the model's own time")
    if args.out is not None:
        shown = {
            "what": args.what,
            "dim": config.dim,
            "layers": config.layers,
            **sizes,
            "compile": args.compile,
        }
        facts = {**machine(torch.device(args.device)), "clock": "wall"}
        write_json(args.out, {"machine": facts, "cases": [{"setting": shown | setting, "rows": [row]}]})


if __name__ == "__main__":
    main()
