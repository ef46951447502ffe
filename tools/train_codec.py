"""Train the small EnCodec of the quickstart: `python tools/train_codec.py --out DIR`.

Shapes: audio float [B, 1, samples] at 8 kHz, latents float [B, 64, frames] at 50 Hz.

DIR gets config.json and model.safetensors (half precision, 2 MB) for transformers' EncodecModel.from_pretrained, and
training.json with the training time and the oracle's accuracy on encoded and decoded clips.

The encoder is a fixed transform and the codebooks are clusters of its output. Only the decoder is trained, on partly
wrong codes. With a trained encoder real clips sounded as good, but fewer generated ones had the timbre of their caption.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from codec_training.initialization import fit_codebooks, fit_projection, initialize_from_mdct, run_layers
from codec_training.losses import codec_loss, is_noise
from magnet_train.apps.quickstart.captions import Caption
from magnet_train.apps.quickstart.oracle import accuracy, read_clips
from magnet_train.apps.quickstart.world import FRAME, PRESETS, SAMPLE_RATE, Audio, ToneWorld

GATE = 0.95  # least accuracy of each attribute after encoding and decoding
GATE_CLIPS = 500
GATE_SEED = 777  # not used in training
CLIPS = 1200  # training clips of each preset
LATENTS = 64  # dimensions: principal components of the MDCT's 160 bins
VECTORS, ITERATIONS = 32_000, 20  # of the k-means of the codebooks
NOISE_SHARE = 0.1  # of the noise, used for k-means: its frames all differ and would take many codes
BATCH, CROP = 12, 24 * FRAME  # clips per step, samples per clip
RATE = 2e-3  # peak learning rate
STEPS = 1900
WARM_UP = 0.04  # share of the steps; without it the decoder's initialization would be lost
MAX_ERRORS = 0.9  # largest share of the finer codes that are replaced
NOISE_WEIGHT = 2.5  # how much more often noise is drawn than tones: it is rare and hardest to encode


def codec_config() -> EncodecConfig:
    """Return the architecture: 8 kHz mono, 50 frames/s, 4 codebooks of 256 entries."""
    return EncodecConfig(
        sampling_rate=SAMPLE_RATE,
        audio_channels=1,
        num_filters=32,
        upsampling_ratios=[10, 16],
        num_residual_layers=0,
        num_lstm_layers=1,  # transformers requires one; with zero weights it is the identity
        hidden_size=LATENTS,
        codebook_dim=LATENTS,
        codebook_size=256,
        target_bandwidths=[1.6],  # kbit/s: 4 codebooks x 8 bits x 50 Hz
        use_causal_conv=False,
        use_conv_shortcut=False,
        normalize=False,
        architectures=["EncodecModel"],
        dtype="float32",  # of the loaded weights; the file has half precision
    )


def train(audio: Sequence[Tensor], steps: int, seed: int, log: Callable[[str], None] = print) -> EncodecModel:
    """Train a codec.

    Args:
        audio: Groups of clips, float [clips, samples]; lengths differ between groups.
        steps: Optimizer steps.
        seed: Seed of weights and batches.
        log: Called with lines of text about the progress.
    """
    torch.manual_seed(seed)
    model = EncodecModel(codec_config())
    some = audio[0][:600]
    initialize_from_mdct(model, *fit_projection(some, FRAME, LATENTS))
    with torch.no_grad():
        few = torch.split(some[:, None], 50)  # all at once would take 5 GB
        latents = torch.cat([run_layers(model.encoder, clips) for clips in few]).transpose(1, 2)
        used = ~is_noise(some) | (torch.rand(len(latents)) < NOISE_SHARE)
        latents = latents[used].flatten(0, 1)
        fit_codebooks(model.quantizer, latents[torch.randperm(len(latents))[:VECTORS]], ITERATIONS)

    weights = [parameter for parameter in model.decoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.8, 0.99))
    crops = _Crops(audio)
    begin = time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step / steps)
        batch = crops.draw()
        with torch.no_grad():
            codes = model.quantizer.encode(run_layers(model.encoder, batch[:, None]))
            quantized = model.quantizer.decode(with_errors(codes))
        loss = codec_loss(run_layers(model.decoder, quantized)[:, 0], batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 100 == 0:
            log(f"  {time.monotonic() - begin:4.0f} s  step {step:5d} of {steps}  loss {loss.item():.3f}")
    log(f"  {steps} steps in {time.monotonic() - begin:.0f} s")
    return model


def learning_rate(done: float) -> float:
    """Return the learning rate after a share of the steps, 0..1: warm-up from 0, then a cosine to a fiftieth."""
    return RATE * min(1.0, done / WARM_UP) * (0.51 + 0.49 * math.cos(math.pi * done))


def with_errors(codes: Tensor) -> Tensor:
    """Replace some codes by those of other clips and frames, all but those of the first codebook.

    A model of the tokens makes errors, which a decoder trained on correct codes turns into harmonics that a sine
    does not have.

    Args:
        codes: int64 [K, B, frames].

    Returns:
        int64 [K, B, frames]; the replaced share differs between clips, up to `MAX_ERRORS`.
    """
    _, clips, frames = codes.shape
    wrong = torch.rand(codes.shape) < MAX_ERRORS * torch.rand(clips)[:, None]
    wrong[0] = False
    return torch.where(wrong, codes[:, torch.randperm(clips)][:, :, torch.randperm(frames)], codes)


class _Crops:
    """Random crops of clips, with noise drawn more often than tones."""

    def __init__(self, audio: Sequence[Tensor]) -> None:
        self.clips = [clip for group in audio for clip in group]
        noisy = torch.cat([is_noise(group) for group in audio])
        self.weights = 1 + (NOISE_WEIGHT - 1) * noisy.float()

    def draw(self) -> Tensor:
        """Return a batch, float [BATCH, CROP]."""
        picked = [self.clips[int(number)] for number in torch.multinomial(self.weights, BATCH)]
        starts = [int(torch.randint(len(clip) - CROP + 1, ())) for clip in picked]
        return torch.stack([clip[start : start + CROP] for clip, start in zip(picked, starts, strict=True)])


def save(model: EncodecModel, folder: Path) -> None:
    """Write config.json, and the weights in half precision as model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    weights = folder / "model.safetensors"
    save_file(half, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # save_file makes it readable by the owner alone
    model.config.save_pretrained(folder)


@torch.no_grad()
def through_codec(model: EncodecModel, clips: Sequence[Audio], batch: int = 50) -> list[Audio]:
    """Encode and decode clips of one length."""
    decoded: list[Audio] = []
    for first in range(0, len(clips), batch):
        audio = torch.from_numpy(np.stack(clips[first : first + batch]))[:, None]
        codes = model.encode(audio).audio_codes
        decoded.extend(model.decode(codes, [None]).audio_values[:, 0].numpy())
    return decoded


def ceiling(folder: Path, preset: str, clips: int = GATE_CLIPS, seed: int = GATE_SEED) -> dict[str, float]:
    """Load a codec and return the oracle's accuracy on clips encoded and decoded by it, by attribute."""
    model = EncodecModel.from_pretrained(folder, dtype=torch.float32).eval()
    captions: list[Caption] = []
    audio: list[Audio] = []
    for caption, clip in ToneWorld(preset, seed).clips(clips, "test"):
        captions.append(caption)
        audio.append(clip)
    return accuracy(captions, read_clips(through_codec(model, audio)))


def main(argv: Sequence[str] | None = None) -> int:
    """Train a codec, save it and measure it; return 1 if the accuracy is below the gate."""
    parser = argparse.ArgumentParser(prog="python tools/train_codec.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help=f"optimizer steps (default: {STEPS}, about 3 minutes on one core)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of clips and weights (default: 0)")
    parser.add_argument(
        "--clips", type=int, default=CLIPS, help=f"training clips of each preset (default: {CLIPS})"
    )
    parser.add_argument(
        "--gate-clips",
        type=int,
        default=GATE_CLIPS,
        help=f"clips of each preset to measure (default: {GATE_CLIPS})",
    )
    args = parser.parse_args(argv)

    begin = time.monotonic()
    print(f"synthesising {args.clips} clips of each preset ...", flush=True)
    audio = [_clips(preset, args.clips, args.seed) for preset in reversed(PRESETS)]
    print(f"training for {args.steps} steps on {torch.get_num_threads()} thread(s) ...", flush=True)
    model = train(audio, args.steps, args.seed, log=partial(print, flush=True))
    save(model, args.out)
    training_seconds = time.monotonic() - begin

    print(f"measuring {args.gate_clips} fresh clips of each preset ...", flush=True)
    accuracies = {preset: ceiling(args.out, preset, args.gate_clips) for preset in PRESETS}
    passed = all(value >= GATE for scores in accuracies.values() for value in scores.values())
    weights = args.out / "model.safetensors"
    record = {
        "script": "python tools/train_codec.py",
        "steps": args.steps,
        "seconds_with_data_and_start": round(training_seconds, 1),
        "threads": torch.get_num_threads(),
        "seed": args.seed,
        "gate": {"accuracy": GATE, "clips": args.gate_clips, "seed": GATE_SEED, "passed": passed},
        "ceiling": accuracies,
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))
    print(f"wrote {args.out}; {'passed' if passed else 'FAILED'} the gate")
    return 0 if passed else 1


def _clips(preset: str, count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.stack([audio for _, audio in ToneWorld(preset, seed).clips(count)]))


if __name__ == "__main__":
    raise SystemExit(main())
