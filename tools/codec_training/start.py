"""Write a transform codec into the convolutions of an EnCodec.

Shapes: audio [samples]; basis float [bins, 2 * hop]; latents [vectors, dims].

From random weights a small EnCodec learns the fundamentals of tones in minutes and their harmonics not at
all. So its encoder is an MDCT, reduced by PCA: the downsampling convolutions cut the audio into phases and
then multiply by the basis. The decoder starts as the reverse and learns what a linear transform cannot do.
Source: Princen, Johnson & Bradley 1987 (the MDCT); layer order as in EnCodec, arXiv 2210.13438, section 3.1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

# ELU(v) - ELU(-v) is 2v for small v, so a value passes an activation as a pair (+v, -v) scaled down by this.
SMALL = 0.15
WHITENING = 0.6  # power of a bin's loudness that it is divided by: 0 leaves it, 1 makes all bins alike
ELEMENT = 0.05  # root mean square of the elements of a direction, see `_lengthen`


def mdct_basis(hop: int) -> Tensor:
    """Return the orthonormal sine-window MDCT with `hop` bins, [hop, 2 * hop]."""
    sample = torch.arange(2 * hop, dtype=torch.float64)
    window = torch.sin(math.pi * (sample + 0.5) / (2 * hop))
    bins = torch.arange(hop, dtype=torch.float64)[:, None]
    return (
        math.sqrt(2 / hop) * window * torch.cos(math.pi / hop * (sample + 0.5 + hop / 2) * (bins + 0.5))
    ).float()


def fit_projection(audio: Tensor, hop: int, dims: int) -> tuple[Tensor, Tensor]:
    """Find the `dims` directions of the MDCT that hold most of some audio.

    Each bin is first divided by a power of its loudness: between all bins counting alike, where noise would
    take every dimension, and loud ones deciding alone, where harmonics would get none.

    Args:
        audio: Float [clips, samples], samples a multiple of `hop`.
        hop: Samples in a frame.
        dims: Directions to keep.

    Returns:
        Analysis and synthesis, both [dims, 2 * hop]: latents = analysis @ samples, and
        samples = synthesis.T @ latents, overlapped and added. Latents are within about -1..1.
    """
    basis = mdct_basis(hop)
    frames = audio.unfold(-1, 2 * hop, hop).reshape(-1, 2 * hop)
    coefficients = frames @ basis.T
    weight = (coefficients.square().mean(dim=0).sqrt() + 1e-4) ** -WHITENING
    weighted = coefficients * weight
    _, directions = torch.linalg.eigh(weighted.T @ weighted)
    directions = directions[:, -dims:].flip(1)  # [hop, dims], strongest first
    scale = (weighted @ directions).abs().flatten()[:1_000_000].quantile(0.999)
    analysis = (directions / scale).T @ (weight[:, None] * basis)
    synthesis = (directions * scale).T @ (basis / weight[:, None])
    return analysis, synthesis


@torch.no_grad()
def start_from_mdct(model: Any, analysis: Tensor, synthesis: Tensor) -> None:
    """Make `model` compute the projection; channels that it does not need keep their random weights.

    Args:
        model: A transformers EncodecModel: mono, not causal, two ratios [b, a], no residual layers, an LSTM.
        analysis: Float [dims, 2 * a * b].
        synthesis: Float [dims, 2 * a * b].
    """
    outer, inner = reversed(
        model.config.upsampling_ratios
    )  # samples in a phase vector, phase vectors in a frame
    dims, margin = len(analysis), outer // 2  # the padding puts a frame's first sample `margin` taps in
    phases = torch.eye(outer)[:, :, None]  # [phase, phase, 1]

    first, down, frame, last = (layer.conv for layer in model.encoder.layers if hasattr(layer, "conv"))
    _set(first, {_centre(first): torch.tensor([[1.0], [-1.0]]) * SMALL})
    cut = {margin + phase: _paired(phases[:, phase]) for phase in range(outer)}
    _set(down, cut)
    taps = analysis.reshape(dims, 2 * inner, outer)  # [dims, phase vectors, phases]
    _set(frame, {tap: _paired(taps[:, tap]) for tap in range(2 * inner)})
    _set(last, {_centre(last): _paired(torch.eye(dims))[:dims] / SMALL})

    first, frame, up, last = (layer.conv for layer in model.decoder.layers if hasattr(layer, "conv"))
    _set(first, {_centre(first): torch.cat([torch.eye(dims), -torch.eye(dims)]) * SMALL})
    taps = synthesis.reshape(dims, 2 * inner, outer)
    _set(frame, {tap: _paired(taps[:, tap].T) for tap in range(2 * inner)})
    _set(up, {margin + phase: _paired(phases[:, phase].T) for phase in range(outer)})
    _set(last, {_centre(last): _paired(torch.ones(1, 1))[:1] / SMALL})

    for lstm in (
        layer.lstm for part in (model.encoder, model.decoder) for layer in part.layers if _is_lstm(layer)
    ):
        for parameter in lstm.parameters():
            parameter.zero_().requires_grad_(False)  # with zero weights it adds nothing to its input


def run_layers(part: Any, x: Tensor) -> Tensor:
    """Run an encoder or decoder without its LSTM: with zero weights it only costs a tenth of the time."""
    for layer in part.layers:
        if not _is_lstm(layer):
            x = layer(x)
    return x


def _paired(weight: Tensor) -> Tensor:
    """From [out, in] make [2 * out, 2 * in], which reads pairs (+v, -v) after an ELU and gives pairs."""
    half = torch.cat([weight, -weight], dim=1) / 2
    return torch.cat([half, -half])


def _set(conv: Any, taps: dict[int, Tensor]) -> None:
    """Write [out, in] matrices at some taps; the outputs they give hear nothing else, others stay random."""
    weight, bias = conv.weight.clone(), conv.bias
    transposed = isinstance(conv, nn.ConvTranspose1d)
    view = weight.transpose(0, 1) if transposed else weight  # [out, in, taps]
    outputs, inputs = next(iter(taps.values())).shape
    view[:outputs] = 0
    bias[:outputs] = 0
    for tap, matrix in taps.items():
        view[:outputs, :inputs, tap] = matrix
    conv.weight = weight  # weight normalisation splits it into length and direction
    _lengthen(conv)


def _lengthen(conv: Any) -> None:
    """Make the directions of a weight-normalised convolution long, which changes only how fast they turn.

    Adam moves every element by about the learning rate, a zero no less than the few that matter. Left as
    short as they are, the directions would be lost in a few dozen steps.
    """
    direction = conv.parametrizations.weight.original1
    root_mean_square = direction.square().mean(dim=(1, 2), keepdim=True).sqrt()
    direction.mul_(ELEMENT / root_mean_square)


def _centre(conv: Any) -> int:
    return int(conv.weight.shape[-1]) // 2


def _is_lstm(layer: nn.Module) -> bool:
    return hasattr(layer, "lstm")
