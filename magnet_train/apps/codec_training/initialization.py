"""Initialise an EnCodec as a transform codec: convolutions from an MDCT, codebooks from k-means.

Shapes: audio [samples]; basis float [bins, 2 * hop]; latents or vectors float [N, dims]; codes int64 [N].

From random weights a small EnCodec learns the fundamentals of tones within minutes, but not their harmonics. So its
encoder is an MDCT reduced by PCA: the downsampling convolutions split the audio into phases and multiply them by the
basis. The decoder starts as the inverse and is trained.
Source: Princen, Johnson & Bradley 1987 (the MDCT); layer order as in EnCodec, arXiv 2210.13438, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# ELU(v) - ELU(-v) is 2v for small v: a value passes an activation as a pair (+v, -v) scaled by this factor.
SMALL = 0.15
ELEMENT = 0.05  # root mean square of the elements of a weight direction, see `_lengthen`


def mdct_basis(hop: int) -> Tensor:
    """Return the orthonormal sine-window MDCT with `hop` bins, [hop, 2 * hop]."""
    sample = torch.arange(2 * hop, dtype=torch.float64)
    window = torch.sin(math.pi * (sample + 0.5) / (2 * hop))
    bins = torch.arange(hop, dtype=torch.float64)[:, None]
    return (
        math.sqrt(2 / hop) * window * torch.cos(math.pi / hop * (sample + 0.5 + hop / 2) * (bins + 0.5))
    ).float()


def fit_projection(audio: Tensor, hop: int, dims: int, whitening: float) -> tuple[Tensor, Tensor]:
    """Fit a PCA of the MDCT with `dims` components.

    Each bin is first divided by a power of its loudness, a compromise: if all bins counted alike, noise would take
    every dimension, and if only loudness counted, harmonics would get none.

    Args:
        audio: Float [clips, samples], samples a multiple of `hop`.
        hop: Samples in a frame.
        dims: Components to keep.
        whitening: Exponent of the loudness that a bin is divided by: 0 changes nothing, 1 equalises all bins.

    Returns:
        Analysis and synthesis, both [dims, 2 * hop]: latents = analysis @ samples, and
        samples = synthesis.T @ latents, overlapped and added. Latents are within about -1..1.
    """
    basis = mdct_basis(hop)
    frames = audio.unfold(-1, 2 * hop, hop).reshape(-1, 2 * hop)
    coefficients = frames @ basis.T
    weight = (coefficients.square().mean(dim=0).sqrt() + 1e-4) ** -whitening
    weighted = coefficients * weight
    _, directions = torch.linalg.eigh(weighted.T @ weighted)
    directions = directions[:, -dims:].flip(1)  # [hop, dims], strongest first
    scale = (weighted @ directions).abs().flatten()[:1_000_000].quantile(0.999)
    analysis = (directions / scale).T @ (weight[:, None] * basis)
    synthesis = (directions * scale).T @ (basis / weight[:, None])
    return analysis, synthesis


@torch.no_grad()
def initialize_from_mdct(model: Any, analysis: Tensor, synthesis: Tensor) -> None:
    """Set the convolutions of `model` to the projection; channels that are not needed keep their random weights.

    Args:
        model: A transformers EncodecModel: mono, not causal, two ratios [b, a], no residual layers, an LSTM.
        analysis: Float [dims, 2 * a * b].
        synthesis: Float [dims, 2 * a * b].
    """
    # Samples per phase vector, and phase vectors per frame.
    outer, inner = reversed(model.config.upsampling_ratios)
    # Padding shifts a frame's first sample by `margin` taps.
    dims, margin = len(analysis), outer - outer // 2
    phases = torch.eye(outer)[:, :, None]  # [phase, phase, 1]

    first, down, frame, last = (layer.conv for layer in model.encoder.layers if hasattr(layer, "conv"))
    _set(first, {_centre(first): torch.tensor([[1.0], [-1.0]]) * SMALL})
    _set(down, {margin + phase: _paired(phases[:, phase]) for phase in range(outer)})
    taps = analysis.reshape(dims, 2 * inner, outer)  # [dims, phase vectors, phases]
    _set(frame, {tap: _paired(taps[:, tap]) for tap in range(2 * inner)})
    _set(last, {_centre(last): _paired(torch.eye(dims))[:dims] / SMALL})

    first, frame, up, last = (layer.conv for layer in model.decoder.layers if hasattr(layer, "conv"))
    _set(first, {_centre(first): torch.cat([torch.eye(dims), -torch.eye(dims)]) * SMALL})
    taps = synthesis.reshape(dims, 2 * inner, outer)
    _set(frame, {tap: _paired(taps[:, tap].T) for tap in range(2 * inner)})
    _set(up, {margin + phase: _paired(phases[:, phase].T) for phase in range(outer)})
    _set(last, {_centre(last): _paired(torch.ones(1, 1))[:1] / SMALL})

    for layer in (*model.encoder.layers, *model.decoder.layers):
        if _is_lstm(layer):
            for parameter in layer.lstm.parameters():
                parameter.zero_().requires_grad_(False)  # the layer then returns its input


@torch.no_grad()
def fit_codebooks(quantizer: Any, vectors: Tensor, iterations: int, report: Callable[[float], None]) -> None:
    """Set every codebook to the k-means centres of the residual of the codebooks before it.

    Args:
        quantizer: Residual quantizer of a transformers EncodecModel, which has no training of its own.
        vectors: Float [N, dims], N at least the codebook size.
        iterations: k-means iterations for each codebook.
        report: Called with the share that is done, 0..1.
    """
    residual = vectors
    for index, layer in enumerate(quantizer.layers):
        report(index / len(quantizer.layers))
        book = layer.codebook
        centres = fit_centres(residual, book.embed.shape[0], iterations)
        book.embed.copy_(centres)
        book.cluster_size.fill_(1.0)
        book.embed_avg.copy_(centres)
        residual = residual - centres[nearest(residual, centres)]


def fit_centres(vectors: Tensor, count: int, iterations: int) -> Tensor:
    """Return k-means centres [count, dims]; a centre without vectors moves to a random vector."""
    centres = vectors[torch.randperm(len(vectors))[:count]].clone()
    for _ in range(iterations):
        codes = nearest(vectors, centres)
        counts = torch.bincount(codes, minlength=count)
        centres = torch.zeros_like(centres).index_add_(0, codes, vectors) / counts.clamp(min=1)[:, None]
        empty = counts == 0
        centres[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),))]
    return centres


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the closest code of each vector, int64 [N]."""
    norms = codebook.square().sum(dim=1)
    few = torch.split(vectors, 2048)  # so that the distances stay in the cache
    # squared distances without the constant |vector|^2
    return torch.cat([torch.addmm(norms, part, codebook.T, alpha=-2).argmin(dim=1) for part in few])


def run_layers(part: Any, x: Tensor) -> Tensor:
    """Run an encoder or decoder without its LSTM, whose zero weights only cost a tenth of the time."""
    for layer in part.layers:
        if not _is_lstm(layer):
            x = layer(x)
    return x


def _paired(weight: Tensor) -> Tensor:
    """Return [2 * out, 2 * in] from [out, in]; it maps pairs (+v, -v) after an ELU to such pairs."""
    half = torch.cat([weight, -weight], dim=1) / 2
    return torch.cat([half, -half])


def _set(conv: Any, taps: dict[int, Tensor]) -> None:
    """Set [out, in] matrices at the given taps and 0 elsewhere in these output channels; the others stay random."""
    weight, bias = conv.weight.clone(), conv.bias
    transposed = isinstance(conv, nn.ConvTranspose1d)
    view = weight.transpose(0, 1) if transposed else weight  # [out, in, taps]
    outputs, inputs = next(iter(taps.values())).shape
    view[:outputs] = 0
    bias[:outputs] = 0
    for tap, matrix in taps.items():
        view[:outputs, :inputs, tap] = matrix
    conv.weight = weight  # weight normalisation splits this into norm and direction
    _lengthen(conv)


def _lengthen(conv: Any) -> None:
    """Scale up the directions of a weight-normalised convolution, so that they change slowly.

    Adam moves every element by about the learning rate, zeros included, so directions with small elements would be
    lost within a few dozen steps.
    """
    direction = conv.parametrizations.weight.original1
    root_mean_square = direction.square().mean(dim=(1, 2), keepdim=True).sqrt()
    direction.mul_(ELEMENT / root_mean_square)


def _centre(conv: Any) -> int:
    return int(conv.weight.shape[-1]) // 2


def _is_lstm(layer: nn.Module) -> bool:
    return hasattr(layer, "lstm")
