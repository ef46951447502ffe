"""Reconstruction loss of the small EnCodec: waveform for tones, spectrum and loudness for noise.

Shapes: audio and output float [B, samples]; tonality float [B], from 0.05 for white noise to 1 for a tone.
`scale` multiplies all windows: 1 at 8 kHz, 2 at 16 kHz.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOWS = (128, 256, 512, 1024)  # samples of the spectra, times `scale`
FLOOR = 0.003  # amplitude below which differences hardly count
BANDS = 16  # frequency bands of the power of noise
ENVELOPE = 160  # samples (20 ms) of the loudness curve, times `scale`


def flatness(audio: Tensor, scale: int = 1) -> Tensor:
    """Return the spectral flatness of each clip, [B]: near 0 for a tone, above .5 for noise."""
    power = _spectrum(audio, 256 * scale).square().mean(dim=-1) + 1e-10
    return power.log().mean(dim=1).exp() / power.mean(dim=1)


def tonality(audio: Tensor, scale: int = 1) -> Tensor:
    """Return the weight of the waveform in the loss of each target, [B]."""
    return (1.2 - 4 * flatness(audio, scale)).clamp(0.05, 1)


def is_noise(audio: Tensor, scale: int = 1) -> Tensor:
    """Return which clips are more noise than tone, bool [B]."""
    return tonality(audio, scale) < 0.5


def codec_loss(output: Tensor, audio: Tensor, scale: int = 1, hits_weight: float = 0.0) -> Tensor:
    """Return the reconstruction loss, a scalar.

    A few codes per frame cannot hold the waveform of noise, and the best guess at it is silence. So for noise the
    waveform counts less, and the power in bands and the loudness over time count more.

    Args:
        output: Output of the decoder, [B, samples].
        audio: Input of the encoder, [B, samples].
        scale: Factor of the windows.
        hits_weight: Weight of the power in bands over time.
    """
    tonal = tonality(audio, scale)
    noisy = 2.5 - 2 * tonal
    loss = 0.7 * tonal * (_wave(output, audio) + _wave(_emphasised(output), _emphasised(audio)))
    loss = loss + noisy * _envelope(output, audio, ENVELOPE * scale)
    for window in WINDOWS:
        ours, theirs = _spectrum(output, window * scale), _spectrum(audio, window * scale)
        logs = (_log(ours) - _log(theirs)).abs().mean(dim=(1, 2))
        error = (ours - theirs).square().sum(dim=(1, 2)) / (theirs.square().sum(dim=(1, 2)) + 1.0)
        # 1e-8: the root has no gradient at 0.
        loss = loss + (logs + 0.5 * (error + 1e-8).sqrt()) / len(WINDOWS)
        if window == 256:
            loss = loss + noisy * (_bands(ours) - _bands(theirs)).abs().mean(dim=1)
        if hits_weight and window <= 256:
            loss = loss + hits_weight * (_hits(ours) - _hits(theirs)).abs().mean(dim=1)
    return loss.mean()


def _wave(output: Tensor, audio: Tensor) -> Tensor:
    """Return the absolute difference relative to the loudness, [B]."""
    return (output - audio).abs().mean(dim=1) / (audio.abs().mean(dim=1) + 0.01)


def _emphasised(audio: Tensor) -> Tensor:
    return audio[:, 1:] - 0.95 * audio[:, :-1]


def _spectrum(audio: Tensor, window: int) -> Tensor:
    """Return magnitudes in units of amplitude, [B, bins, frames]."""
    hann = torch.hann_window(window, dtype=audio.dtype)
    spectrum = torch.stft(audio, window, window // 4, window=hann, center=False, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(dim=-1).add(1e-10).sqrt() * (2 / hann.sum())


def _log(magnitudes: Tensor) -> Tensor:
    return (magnitudes + FLOOR).log()


def _bands(magnitudes: Tensor) -> Tensor:
    """Return the log of the power averaged over time and bands, [B, BANDS]."""
    power = magnitudes[:, 1:].square().mean(dim=-1)
    return 0.5 * torch.log(power.reshape(len(power), BANDS, -1).mean(dim=-1) + FLOOR**2)


def _hits(magnitudes: Tensor) -> Tensor:
    """Return the log of the power averaged over bands alone, [B, BANDS * frames]."""
    batch, bins, frames = magnitudes[:, 1:].shape
    power = magnitudes[:, 1:].square().reshape(batch, BANDS, bins // BANDS, frames).mean(dim=2)
    return 0.5 * torch.log(power + FLOOR**2).flatten(1)


def _envelope(output: Tensor, audio: Tensor, window: int) -> Tensor:
    """Return the absolute difference of the log loudness over time, [B]."""

    def loudness(wave: Tensor) -> Tensor:
        return 0.5 * torch.log(wave.unfold(1, window, window).square().mean(dim=-1) + FLOOR**2)

    return (loudness(output) - loudness(audio)).abs().mean(dim=1)
