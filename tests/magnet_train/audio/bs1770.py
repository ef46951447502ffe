"""Loudness after ITU-R BS.1770-4, written from its text: an independent measure for the tests."""

from __future__ import annotations

import numpy as np

# Annex 1, tables 1 and 2: numerator and denominator of the two filters at 48 kHz.
FILTERS = (
    ((1.53512485958697, -2.69169618940638, 1.19839281085285), (-1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (-1.99004745483398, 0.99007225036621)),
)


def loudness(audio: np.ndarray, sample_rate: int) -> float:
    """Return the integrated loudness (LUFS) of [channels, samples], -inf for silence."""
    samples = round(audio.shape[1] * 48_000 / sample_rate)
    spectrum = np.fft.rfft(audio.astype(np.float64))
    weighted = [_weighted(channel) for channel in np.fft.irfft(spectrum, samples) * samples / audio.shape[1]]
    power = np.array(
        [
            [np.mean(channel[start : start + 19_200] ** 2) for start in range(0, samples - 19_199, 4_800)]
            for channel in weighted
        ]
    )
    with np.errstate(divide="ignore"):
        blocks = _level(power.sum(axis=0))
        loud = power[:, blocks > -70]
        if not loud.size:
            return -np.inf
        threshold = max(-70.0, float(_level(loud.mean(axis=1).sum())) - 10)
    return float(_level(power[:, blocks > threshold].mean(axis=1).sum()))


def _level(power: np.ndarray) -> np.ndarray:
    return -0.691 + 10 * np.log10(power)


def _weighted(channel: np.ndarray) -> np.ndarray:
    samples = channel.tolist()
    for (b0, b1, b2), (a1, a2) in FILTERS:
        x1 = x2 = y1 = y2 = 0.0
        out = []
        for x in samples:
            y = b0 * x + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2
            x1, x2, y1, y2 = x, x1, y, y1
            out.append(y)
        samples = out
    return np.array(samples)
