"""How a small EnCodec is made: an MDCT as the encoder, codebooks by k-means, a trained decoder.

Shapes: audio float [B, 1, samples], clips float [N, samples], latents float [B, dims, frames] at 50 Hz,
codes int64 [K, B, frames].

Only the decoder is trained, on partly wrong codes. With a trained encoder real clips sounded as good, but fewer
generated ones had the timbre of their caption.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from magnet_train.apps.codec_training.initialization import (
    fit_codebooks,
    fit_projection,
    initialize_from_mdct,
    run_layers,
)
from magnet_train.apps.codec_training.losses import codec_loss, is_noise

FRAME_RATE = 50  # Hz
FILTERS = 32  # channels at the full rate
LATENTS = 64  # dimensions: principal components of the MDCT's bins
PROJECTION_CLIPS = 600
BATCH, CROP_FRAMES = 12, 24  # clips per step, length of each
RATE = 2e-3  # peak learning rate
WARM_UP = 0.04  # share of the steps; without warm-up the decoder's initialization is lost
TRIAL_STEPS = 12  # to time a step


@dataclass(frozen=True)
class Recipe:
    """Sizes of a codec and settings of its training."""

    sample_rate: int  # Hz, a multiple of `FRAME_RATE`
    codebooks: int
    card: int
    ratios: tuple[int, int]  # decoder's upsampling: from frames to phase vectors, and from these to samples
    whitening: float  # exponent of the loudness that a bin of the MDCT is divided by
    vectors: int  # most vectors for the k-means of the codebooks
    iterations: int  # of the k-means
    noise_share: (
        float  # share of the noisy clips used for k-means: their frames all differ and would take many codes
    )
    noise_weight: (
        float  # how much more often noise is drawn than tones in training: it is rare and hardest to encode
    )
    max_errors: float  # largest share of the finer codes that are replaced while the decoder trains
    hits_weight: float  # weight of the power in bands over time, which keeps short noises beside tones

    @property
    def hop(self) -> int:
        """Samples in a frame."""
        return self.sample_rate // FRAME_RATE

    @property
    def scale(self) -> int:
        """Factor of the loss's windows."""
        return 1 << max(0, round(math.log2(self.sample_rate / 8000)))

    def config(self) -> EncodecConfig:
        """Return the architecture: mono, 50 frames/s."""
        bits = math.ceil(math.log2(self.card))
        return EncodecConfig(
            sampling_rate=self.sample_rate,
            audio_channels=1,
            num_filters=FILTERS,
            upsampling_ratios=list(self.ratios),
            num_residual_layers=0,
            num_lstm_layers=1,  # transformers requires one; with zero weights it is the identity
            hidden_size=LATENTS,
            codebook_dim=LATENTS,
            codebook_size=self.card,
            target_bandwidths=[self.codebooks * bits * FRAME_RATE / 1000],  # kbit/s
            use_causal_conv=False,
            use_conv_shortcut=False,
            normalize=False,
            architectures=["EncodecModel"],
            dtype="float32",  # of the loaded weights; the file has half precision
        )


def start_codec(
    clips: Tensor, recipe: Recipe, report: Callable[[float], None] = lambda _: None
) -> EncodecModel:
    """Return a transform codec fitted to clips; its decoder inverts the transform.

    Args:
        clips: Float [N, samples].
        recipe: Sizes, and how the codebooks are fitted.
        report: Called with the share of the codebooks that are fitted, 0..1.
    """
    model = EncodecModel(recipe.config())
    initialize_from_mdct(
        model, *fit_projection(clips[:PROJECTION_CLIPS], recipe.hop, LATENTS, recipe.whitening)
    )
    with torch.no_grad():
        few = torch.split(clips[:, None], 50)  # at once they would take 5 GB
        latents = torch.cat([run_layers(model.encoder, part) for part in few]).transpose(1, 2)
        used = ~is_noise(clips, recipe.scale) | (torch.rand(len(latents)) < recipe.noise_share)
        latents = latents[used].flatten(0, 1)
        drawn = latents[torch.randperm(len(latents))[: recipe.vectors]]
        fit_codebooks(model.quantizer, drawn, recipe.iterations, report)
    return model


class DecoderTraining:
    """Train the decoder of a codec from `start_codec`; the global random state decides crops and errors.

    Args:
        model: The codec.
        audio: Groups of clips, float [clips, samples]; lengths differ between groups.
        recipe: Its recipe.
    """

    def __init__(self, model: EncodecModel, audio: Sequence[Tensor], recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self._weights = [parameter for parameter in model.decoder.parameters() if parameter.requires_grad]
        self._clips = [clip for group in audio for clip in group]
        noisy = torch.cat([is_noise(group, recipe.scale) for group in audio])
        self._drawn_as_often = 1 + (recipe.noise_weight - 1) * noisy.float()

    def run(self, steps: int, report: Callable[[int, float], None]) -> None:
        """Make optimizer steps; `report` gets the number of each and its loss."""
        optimizer = torch.optim.AdamW(self._weights, lr=RATE, betas=(0.8, 0.99))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step / steps)
            loss = self._loss()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
            optimizer.step()
            report(step, loss.item())

    def seconds_per_step(self) -> float:
        """Time a few steps without changing weights or random state."""
        with torch.random.fork_rng():
            for step in range(TRIAL_STEPS):
                if step == 2:  # the first ones allocate memory
                    begin = time.monotonic()
                self._loss().backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad()
        return (time.monotonic() - begin) / (TRIAL_STEPS - 2)

    def _loss(self) -> Tensor:
        batch = self._draw()
        with torch.no_grad():
            codes = self.model.quantizer.encode(run_layers(self.model.encoder, batch[:, None]))
            quantized = self.model.quantizer.decode(with_errors(codes, self.recipe.max_errors))
        return codec_loss(
            run_layers(self.model.decoder, quantized)[:, 0], batch, self.recipe.scale, self.recipe.hits_weight
        )

    def _draw(self) -> Tensor:
        """Return random crops of random clips, float [BATCH, samples]."""
        crop = CROP_FRAMES * self.recipe.hop
        few = len(self._clips) < BATCH  # of a few seconds of sound
        numbers = torch.multinomial(self._drawn_as_often, BATCH, replacement=few)
        picked = [self._clips[int(number)] for number in numbers]
        starts = [int(torch.randint(len(clip) - crop + 1, ())) for clip in picked]
        return torch.stack([clip[start : start + crop] for clip, start in zip(picked, starts, strict=True)])


def learning_rate(done: float) -> float:
    """Return the learning rate after a share of the steps, 0..1: warm-up from 0, then a cosine to a fiftieth."""
    return RATE * min(1.0, done / WARM_UP) * (0.51 + 0.49 * math.cos(math.pi * done))


def with_errors(codes: Tensor, most: float) -> Tensor:
    """Replace some codes by those of other clips and frames, all but those of the first codebook.

    A token model makes errors, which a decoder trained on correct codes would turn into spurious harmonics.

    Args:
        codes: int64 [K, B, frames].
        most: Largest share of a clip's codes to replace.

    Returns:
        int64 [K, B, frames]; the replaced share is drawn for each clip from 0..`most`.
    """
    _, clips, frames = codes.shape
    wrong = torch.rand(codes.shape) < most * torch.rand(clips)[:, None]
    wrong[0] = False
    return torch.where(wrong, codes[:, torch.randperm(clips)][:, :, torch.randperm(frames)], codes)


def save(model: EncodecModel, folder: Path) -> None:
    """Write config.json, and the weights in half precision as model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    weights = folder / "model.safetensors"
    save_file(half, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # save_file makes it readable by the owner alone
    model.config.save_pretrained(folder)
