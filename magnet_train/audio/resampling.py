"""Resample audio in blocks, stretch loops, and measure loudness. The only file that imports torchaudio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

# Ratios of sample rates with larger terms are rounded to the nearest one with smaller terms: the filter bank has
# target x source taps, gigabytes for 22051 -> 32000 Hz. The pitch changes by less than a cent.
_LARGEST_RATIO_TERM = 2000
# torchaudio's defaults; the overlap of blocks follows from them.
_FILTER_WIDTH = 6  # zero crossings of the sinc on each side
_ROLLOFF = 0.99  # of the lower Nyquist frequency
LOUDNESS_BLOCK = 0.4  # s
LOUDNESS_PEAK = 0.25


def resample_blocks(blocks: Iterable[Tensor], source_rate: int, target_rate: int) -> Iterator[Tensor]:
    """Resample blocks float32 [channels, samples] of any lengths; concatenated, they equal the whole resampled.

    Rates are in Hz. The filter turns each group of `ratio.numerator` samples into `ratio.denominator` and reaches
    `margin` groups to both sides. So a group is resampled once those after it have arrived, and those before it are
    kept.
    """
    if source_rate == target_rate:
        yield from blocks
        return
    ratio = ratio_of(source_rate, target_rate)
    group, resampled_group = ratio.numerator, ratio.denominator
    reach = math.ceil(_FILTER_WIDTH * group / (min(group, resampled_group) * _ROLLOFF))  # samples
    margin = -(-reach // group) + 1  # groups
    pending: Tensor | None = None
    done = 0  # groups of `pending` that were yielded
    for block in blocks:
        pending = block if pending is None else torch.cat([pending, block], dim=-1)
        ready = pending.shape[-1] // group - margin
        if ready <= done:
            continue
        yield resample(pending, ratio)[:, done * resampled_group : ready * resampled_group]
        dropped = max(0, ready - margin)
        pending, done = pending[:, dropped * group :].clone(), ready - dropped
    if pending is not None:
        yield resample(pending, ratio)[:, done * resampled_group :]


def ratio_of(source_rate: int, target_rate: int) -> Fraction:
    """Return the ratio of two sample rates, or one near it that needs no giant filter bank."""
    ratio = Fraction(source_rate, target_rate)
    largest = math.isqrt(round(_LARGEST_RATIO_TERM**2 / ratio))
    return ratio.limit_denominator(max(1, min(_LARGEST_RATIO_TERM, largest)))


def resample(audio: Tensor, ratio: Fraction) -> Tensor:
    """Resample float32 [..., samples] to 1 / `ratio` of its rate."""
    from torchaudio.functional import resample as windowed_sinc

    resampled: Tensor = windowed_sinc(
        audio, ratio.numerator, ratio.denominator, lowpass_filter_width=_FILTER_WIDTH, rolloff=_ROLLOFF
    )
    return resampled


def stretch_loop(audio: Tensor, samples: int) -> Tensor:
    """Resample a loop float32 [..., samples] to another number of samples as a periodic signal: it stays seamless."""
    length = audio.shape[-1]
    if samples == length:
        return audio
    stretched: Tensor = torch.fft.irfft(torch.fft.rfft(audio), n=samples) * (samples / length)
    return stretched


def integrated_loudness(audio: Tensor, sample_rate: int) -> float:
    """Return the loudness of audio float32 [channels, samples] (LUFS), -inf for silence.

    A clip shorter than a block of 0.4 s is measured as if it were repeated.

    Source: ITU-R BS.1770-4.
    """
    from torchaudio.functional import loudness

    block = round(LOUDNESS_BLOCK * sample_rate)
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    if peak == 0:
        return -math.inf
    # torchaudio clips the output of its filters at full scale
    scale = min(1.0, LOUDNESS_PEAK / peak)
    measured = float(loudness(audio.repeat(1, -(-block // audio.shape[-1])) * scale, sample_rate))
    return -math.inf if math.isnan(measured) else measured - 20 * math.log10(scale)
