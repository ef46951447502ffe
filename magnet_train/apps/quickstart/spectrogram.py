"""Spectrograms as small pictures without axes, for a page that says what they show.

Shapes: audio float [samples].
"""

from __future__ import annotations

import io

import numpy as np
from matplotlib.image import imsave

from magnet_train.apps.html_page import Audio

ROWS = 112  # pixels over the frequencies
HOP = 0.01  # seconds in a pixel
WINDOW = 0.04  # seconds
FFT = 4  # times the window, so that neighbouring rows differ in the bass too
LOWEST = 30.0  # Hz
QUIETEST, LOUDEST = (
    -80.0,
    -10.0,
)  # dB of a full-scale sine; the same for all clips, so that they can be compared


def spectrogram(audio: Audio, sample_rate: int) -> bytes:
    """Draw the level over time and frequency (mel scale, 30 Hz to half the sample rate), brighter is louder.

    Returns:
        A JPEG of 112 rows and a column for each 10 ms.
    """
    window, hop = round(WINDOW * sample_rate), round(HOP * sample_rate)
    padded = np.pad(audio, window // 2)
    padded = np.pad(padded, (0, max(0, window - len(padded))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    level = 20 * np.log10(np.abs(np.fft.rfft(frames, FFT * window)) * 4 / window + 1e-6)
    mels = np.linspace(_mel(LOWEST), _mel(sample_rate / 2), ROWS)
    bins = np.round((10 ** (mels / 2595) - 1) * 700 * FFT * window / sample_rate).astype(int)
    written = io.BytesIO()
    # JPEG, since a PNG of noise is five times as large
    imsave(
        written, level[:, bins].T, format="jpeg", vmin=QUIETEST, vmax=LOUDEST, cmap="magma", origin="lower"
    )
    return written.getvalue()


def _mel(frequency: float) -> float:
    return float(2595 * np.log10(1 + frequency / 700))
