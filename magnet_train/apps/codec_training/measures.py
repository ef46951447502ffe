"""Reconstruction quality of a codec on held-out audio: distances and correlations of clips and their decoded tokens.

Shapes: audio float [samples], spectra float [bins, frames].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from magnet_train.audio.log_mel import MEL_RANGE_DB, log_mel, log_mel_distance, power_spectrum
from magnet_train.codecs import Codec

CHROMA_WINDOW = 0.128  # seconds
CHROMA_RANGE = 65.0, 2000.0  # Hz


@dataclass(frozen=True)
class Measured:
    """Medians over excerpts, and the use of the codebooks."""

    si_sdr: float  # dB
    log_mel: float  # dB
    onset: float  # correlation, -1..1
    chroma: float
    onset_by_chance: float | None  # with the original of another excerpt; None with one excerpt
    chroma_by_chance: float | None
    entries_used: list[int]  # of each codebook
    frames: int  # in which the entries were counted


def measure(codec: Codec, excerpts: Mapping[str, Tensor]) -> tuple[Measured, dict[str, Tensor]]:
    """Encode and decode excerpts; return the measures, and the decoded excerpts."""
    decoded, tokens = {}, []
    for name, audio in excerpts.items():
        tokens.append(codec.encode(audio[None, None]))
        decoded[name] = codec.decode(tokens[-1])[0, 0, : len(audio)]
    pairs = [(excerpts[name], decoded[name]) for name in excerpts]
    mels = [
        (log_mel(audio, codec.sample_rate), log_mel(output, codec.sample_rate)) for audio, output in pairs
    ]
    onsets = [(_onsets(audio), _onsets(output)) for audio, output in mels]
    chromas = [
        (_chroma(audio, codec.sample_rate), _chroma(output, codec.sample_rate)) for audio, output in pairs
    ]
    frames = torch.cat(tokens, dim=-1)[0]  # [K, T]
    return Measured(
        si_sdr=median(si_sdr(output, audio) for audio, output in pairs),
        log_mel=median(log_mel_distance(*pair) for pair in mels),
        onset=median(_correlation(*pair) for pair in onsets),
        chroma=median(_correlation(*pair) for pair in chromas),
        onset_by_chance=_by_chance(onsets),
        chroma_by_chance=_by_chance(chromas),
        entries_used=[len(codebook.unique()) for codebook in frames],
        frames=frames.shape[1],
    ), decoded


def si_sdr(output: Tensor, audio: Tensor) -> float:
    """Return the scale-invariant signal-to-distortion ratio (dB)."""
    target = (output @ audio) / (audio @ audio) * audio
    ratio = target.square().sum() / (output - target).square().sum().clamp(min=1e-10)
    return float(10 * ratio.clamp(min=1e-10).log10())


def _onsets(levels: Tensor) -> Tensor:
    """Return the onset strength, the mean rise in level over the bands, [frames - 1]."""
    return levels.clamp(min=levels.max() - MEL_RANGE_DB).diff(dim=1).clamp(min=0).mean(dim=0)


def _chroma(audio: Tensor, sample_rate: int) -> Tensor:
    """Return the share of each of the 12 semitones in each frame, [12, frames]."""
    power, frequencies = power_spectrum(audio, sample_rate, CHROMA_WINDOW)
    low, high = CHROMA_RANGE
    within = (frequencies >= low) & (frequencies <= high)
    semitones = (12 * torch.log2(frequencies[within] / 440)).round().long() % 12
    chroma = torch.zeros(12, power.shape[1]).index_add_(0, semitones, power[within].sqrt())
    return chroma / chroma.sum(dim=0).clamp(min=1e-6)


def _correlation(audio: Tensor, output: Tensor) -> float:
    """Return Pearson's correlation of two arrays, cut to the shorter one."""
    frames = min(audio.shape[-1], output.shape[-1])
    pair = torch.stack([audio[..., :frames].flatten(), output[..., :frames].flatten()])
    return float(torch.corrcoef(pair)[0, 1].nan_to_num())


def _by_chance(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    if len(pairs) < 2:
        return None
    others = [audio for audio, _ in [*pairs[1:], pairs[0]]]
    return median(_correlation(other, output) for other, (_, output) in zip(others, pairs, strict=True))
