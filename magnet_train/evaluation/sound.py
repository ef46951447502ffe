"""Measures of sound that need no weights: log-mel distance, tempo, loudness, clipping, silence and spectral tilt.

Shapes: audio float32 [samples]; log-mel spectra (dB) [MEL_BANDS, frames]; n clips or pairs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from magnet_train.audio.log_mel import MEL_RANGE_DB, MEL_WINDOW, log_mel, mel_filters
from magnet_train.audio.resampling import integrated_loudness, ratio_of, resample
from magnet_train.audio.tempo_and_key import LEAST_CONFIDENCE, RATE, estimate_tempo
from magnet_train.evaluation.measures import EqualSizes, Floats, at_equal_sizes, bootstrap_interval

_FRAME = 0.05  # seconds, of the frames whose level is compared with `_SILENT`
_SILENT = 1e-3  # root mean square of a frame below which it is silent: -60 dB of full scale
_TILT_RANGE = 100.0, 0.9  # Hz, and of the highest frequency
_LEAST_SECONDS = 2.0  # of a clip to have a tempo: six beats at 180 bpm
_TOLERANCE = 0.04  # by which a tempo may differ
_MULTIPLES = (0.5, 1.0, 2.0)  # an estimate may be the double or the half of the tempo


@dataclass(frozen=True)
class ClipSound:
    """Measurements of one clip in mono."""

    silent_frames: float  # share of frames of 50 ms with a level below -60 dB of full scale
    loudness: float | None  # LUFS, ITU-R BS.1770; None for silence, as are the next two
    spectrum: Floats | None  # [MEL_BANDS], dB: mean power in each band, normalised to mean 0 over the bands
    tilt: float | None  # dB per octave, from 100 Hz up; 0 for white, -3 for pink noise
    tempo: float | None = None  # bpm; None without a reliable estimate


def measure_clip(audio: Tensor, sample_rate: int, with_tempo: bool = False) -> tuple[ClipSound, Tensor]:
    """Return the measurements of a clip, one sample or more, and its log-mel spectrum.

    Args:
        audio: float32 [samples].
        sample_rate: Hz.
        with_tempo: Estimate the tempo, which needs librosa.
    """
    missing = round(MEL_WINDOW * sample_rate) - len(audio)
    levels = log_mel(torch.nn.functional.pad(audio, (0, max(0, missing))), sample_rate)
    loudness = integrated_loudness(audio[None], sample_rate)
    silent = _silent_frames(audio, sample_rate)
    if not np.isfinite(loudness):
        return ClipSound(silent, None, None, None), levels
    mean = 10 * torch.log10((10 ** (levels / 10)).mean(dim=1))
    mean = mean.clamp(min=mean.max() - MEL_RANGE_DB)
    spectrum: Floats = (mean - mean.mean()).double().numpy()
    tempo = _tempo(audio, sample_rate) if with_tempo else None
    return ClipSound(silent, loudness, spectrum, _tilt(mean, sample_rate), tempo), levels


def _silent_frames(audio: Tensor, sample_rate: int) -> float:
    size = max(1, round(_FRAME * sample_rate))
    frames = audio[: max(1, len(audio) // size) * size].unfold(0, min(size, len(audio)), size)
    return float((frames.square().mean(dim=1).sqrt() < _SILENT).float().mean())


def _tilt(levels: Tensor, sample_rate: int) -> float | None:
    """Return the slope of power density (dB) over octaves, by least squares over the bands; None with fewer than two."""
    frequencies = torch.linspace(0, sample_rate / 2, round(MEL_WINDOW * sample_rate) // 2 + 1)
    filters = mel_filters(frequencies)
    widths = filters.sum(dim=1)
    centres = (filters @ frequencies) / widths.clamp(min=1e-6)
    low, high = _TILT_RANGE
    used = (widths > 0) & (centres >= low) & (centres <= high * sample_rate / 2)
    if used.sum() < 2:
        return None
    density = levels - 10 * torch.log10(widths.clamp(min=1e-6))
    return float(np.polyfit(torch.log2(centres[used]).numpy(), density[used].numpy(), 1)[0])


def _tempo(audio: Tensor, sample_rate: int) -> float | None:
    if len(audio) < _LEAST_SECONDS * sample_rate:
        return None
    resampled = audio if sample_rate == RATE else resample(audio, ratio_of(sample_rate, RATE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # librosa's, of filters longer than a short clip
        found = estimate_tempo(resampled.numpy())
    return None if found is None or found.confidence < LEAST_CONFIDENCE["bpm"] else float(found.value)


@dataclass(frozen=True)
class Levels:
    """Mean and standard deviation over clips."""

    mean: float
    std: float
    clips: int  # with a measurement

    @classmethod
    def of(cls, numbers: Sequence[float | None]) -> Self | None:
        """Summarize the numbers that are not None; None without any."""
        found = np.array([number for number in numbers if number is not None])
        return cls(float(found.mean()), float(found.std()), len(found)) if len(found) else None


@dataclass(frozen=True)
class SideSound:
    """Measurements of all clips of a side; shares are 0..1."""

    clips: int
    loudness: Levels | None  # LUFS
    full_scale: float  # mean share of samples at full scale, in the files themselves
    silent_frames: float  # mean share
    silent_clips: float  # share
    tilt: Levels | None  # dB per octave
    with_tempo: float | None  # share with a reliable tempo; None if none was estimated


def summarize_side(
    clips: Sequence[ClipSound], full_scale: Sequence[float], silent: Sequence[bool], with_tempo: bool
) -> SideSound:
    """Summarize one clip or more, given for each its share of samples at full scale and whether it is silent."""
    return SideSound(
        clips=len(clips),
        loudness=Levels.of([clip.loudness for clip in clips]),
        full_scale=float(np.mean(full_scale)),
        silent_frames=float(np.mean([clip.silent_frames for clip in clips])),
        silent_clips=float(np.mean(silent)),
        tilt=Levels.of([clip.tilt for clip in clips]),
        with_tempo=float(np.mean([clip.tempo is not None for clip in clips])) if with_tempo else None,
    )


@dataclass(frozen=True)
class MeanSpectrum:
    """The mean of the spectra (dB) of some clips, [MEL_BANDS]."""

    levels: Floats

    @classmethod
    def of(cls, clips: Sequence[npt.ArrayLike]) -> Self:
        """Average the `ClipSound.spectrum` of each."""
        return cls(np.mean(np.asarray(clips, dtype=np.float64), axis=0))

    def distance(self, other: MeanSpectrum) -> float:
        """Return the mean absolute difference over the bands (dB)."""
        return float(np.abs(self.levels - other.levels).mean())


@dataclass(frozen=True)
class SpectrumDistance:
    """Distance of the average spectra of both sides, without their loudness (dB); 0 or more."""

    distance: float  # of all generated from all real clips
    generated_clips: int
    reference_clips: int
    equal: EqualSizes | None  # None with fewer than four clips of the reference


def measure_spectrum(
    generated: Sequence[ClipSound], reference: Sequence[ClipSound], seed: int = 0
) -> SpectrumDistance | None:
    """Compare the average spectra of the clips that are not silent; None if a side has none."""
    ours, real = ([c.spectrum for c in side if c.spectrum is not None] for side in (generated, reference))
    if not ours or not real:
        return None
    distance = MeanSpectrum.of(ours).distance(MeanSpectrum.of(real))
    return SpectrumDistance(
        distance, len(ours), len(real), at_equal_sizes(MeanSpectrum.of, ours, real, None, seed)
    )


@dataclass(frozen=True)
class PairedDistance:
    """Mean log-mel distance from reference to generated clip (dB), 0 or more, smaller is better."""

    mean: float
    interval: tuple[float, float] | None  # 95 %, see `bootstrap_interval`
    pairs: int
    # Means over the pairs from the second on, each with the reference of the pair before; None for one pair.
    chance: float | None  # of the generated clip
    other_real: float | None  # of the reference


def summarize_pairs(
    own: Sequence[float], chance: Sequence[float], other_real: Sequence[float], seed: int = 0
) -> PairedDistance | None:
    """Summarize distances of n pairs, and n - 1 from the reference of the pair before; None without pairs."""
    if not own:
        return None
    others = [float(np.mean(values)) if values else None for values in (chance, other_real)]
    return PairedDistance(float(np.mean(own)), bootstrap_interval(own, seed), len(own), *others)


@dataclass(frozen=True)
class TempoAgreement:
    """Share of clips whose tempo is within 4 % of the requested one, its half or its double; 0..1, larger is better."""

    share: float
    interval: tuple[float, float] | None  # 95 %, see `bootstrap_interval`
    clips: int  # with a requested tempo
    chance: float | None  # with the tempo requested of another clip; None for one clip
    real: float | None  # of the reference; None if no tempo was requested there


def measure_tempo(
    found: Sequence[float | None], asked: Sequence[float], real: float | None, seed: int = 0
) -> TempoAgreement | None:
    """Compare the tempi of n clips (bpm; None never agrees) with the requested ones; None for n = 0."""
    if not found:
        return None
    agrees = tempo_agrees(found, asked)
    n, chance = len(found), None
    if n > 1:
        total = sum(int(tempo_agrees([tempo] * n, asked).sum()) for tempo in found)
        chance = float((total - agrees.sum()) / (n * (n - 1)))
    return TempoAgreement(float(agrees.mean()), bootstrap_interval(agrees, seed), n, chance, real)


def tempo_agrees(found: Sequence[float | None], asked: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Return whether the tempo of each clip is the requested one, bool [n]."""
    tempi = np.array([np.nan if tempo is None else tempo for tempo in found])
    ratio = tempi / np.asarray(asked, dtype=np.float64)
    off = np.min([np.abs(ratio / multiple - 1) for multiple in _MULTIPLES], axis=0)
    agrees: npt.NDArray[np.bool_] = off <= _TOLERANCE
    return agrees
