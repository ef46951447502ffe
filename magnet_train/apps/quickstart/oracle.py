"""Read pitch, timbre and rhythm back from audio, by measuring; nothing here is learned.

Shapes: audio float [samples] at 8 kHz. A clip is cut into windows of 1.28 s and each is read for itself; one
event over two windows reads as the same event twice, two events as one each. What cannot be read is "".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from magnet_train.apps.quickstart.captions import PITCHES, Event
from magnet_train.apps.quickstart.world import PERIOD, SAMPLE_RATE, WINDOW, note_frequency

Floats = npt.NDArray[np.floating]

STEP = 80  # samples (10 ms) between two values of the loudness curve
FFT = 4096  # 2 Hz between bins: a frame of 512 samples, padded
FRAME, HOP = 512, 128  # samples
SILENCE = 0.01  # root mean square below which nothing is heard
FLAT = 0.25  # spectral flatness above which a sound is noise; white noise has about .9, a tone below .1
EVEN = 0.2  # second harmonic beside the first above which a tone is a saw, which has .5; the others have none
ODD = 0.12  # third beside the first above which it is a square, which has .33; a sine has none
OUT_OF_TUNE = 60  # cents from a note beyond which a tone is none of the eight


def read_clip(audio: Floats) -> list[Event]:
    """Read a clip of one window or more.

    Args:
        audio: Float [samples]; a last part shorter than half a window is ignored.

    Returns:
        One event per window.
    """
    windows = max(1, round(len(audio) / WINDOW))
    return [read_window(audio[index * WINDOW : (index + 1) * WINDOW]) for index in range(windows)]


def read_window(audio: Floats) -> Event:
    """Read one window, float [samples]; silence reads as an event without any value."""
    loudness = _loudness(audio)
    if loudness.max(initial=0.0) < SILENCE:
        return Event("", "", "")
    power = _spectrum(audio)
    rhythm = _rhythm(loudness)
    if _flatness(power) > FLAT:
        return Event("", "noise", rhythm)
    amplitude = np.sqrt(power)
    frequency = _fundamental(amplitude)
    return Event(_pitch(frequency), _timbre(amplitude, frequency), rhythm)


def read_intervals(audio: Floats) -> Floats:
    """Return the times from each beginning of a sound to the next, in samples, of float [samples]."""
    starts = np.flatnonzero(np.diff(_sounding(_loudness(audio)).astype(int)) == 1)
    return np.asarray(np.diff(starts) * float(STEP))


def expected_windows(events: Sequence[Event], windows: int) -> list[Event]:
    """Return the event that each window of a clip should hold: one event fills them all, two share them."""
    return [events[index * len(events) // windows] for index in range(windows)]


def _loudness(audio: Floats) -> Floats:
    """Root mean square over 20 ms, every 10 ms, [steps]."""
    steps = len(audio) // STEP
    power = (np.asarray(audio[: steps * STEP], dtype=np.float64).reshape(steps, STEP) ** 2).mean(axis=1)
    return np.asarray(np.sqrt(np.convolve(power, [0.5, 0.5], mode="same")))


def _rhythm(loudness: Floats) -> str:
    """Steady if it sounds once without a gap, else slow or fast by the time from pulse to pulse."""
    sounding = _sounding(loudness)
    edges = np.diff(sounding.astype(int))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    gaps = (starts[:, None] > ends[None, :]).any(axis=1).sum()  # silences with sound on both sides
    if gaps == 0:
        return "steady" if sounding.mean() > 0.7 else ""
    times = np.concatenate([np.diff(starts), np.diff(ends)]) * STEP  # samples from pulse to pulse
    if len(times) == 0:
        return ""
    ratios = {rhythm: abs(np.log(np.median(times) / period)) for rhythm, period in PERIOD.items()}
    nearest = min(ratios, key=lambda rhythm: ratios[rhythm])
    return nearest if ratios[nearest] < np.log(1.4) else ""


def _sounding(loudness: Floats) -> npt.NDArray[np.bool_]:
    """True where it sounds, [steps]: from half of the loud level on to a quarter, or noise would chop it."""
    loud = np.quantile(loudness, 0.9)
    sounding = np.zeros(len(loudness), dtype=bool)
    on = False
    for index, value in enumerate(loudness):
        on = value > 0.25 * loud if on else value > 0.5 * loud
        sounding[index] = on
    return sounding


def _spectrum(audio: Floats) -> Floats:
    """Mean power of the louder half of the frames, [FFT // 2 + 1]."""
    starts = np.arange(0, max(1, len(audio) - FRAME + 1), HOP)
    frames = np.stack([audio[start : start + FRAME] for start in starts]) * np.hanning(FRAME)
    energy = (frames**2).sum(axis=1)
    return np.asarray((np.abs(np.fft.rfft(frames[energy >= 0.5 * energy.max()], FFT)) ** 2).mean(axis=0))


def _flatness(power: Floats) -> float:
    """Geometric over arithmetic mean of the power from 150 to 3700 Hz, 0..1."""
    padding = FFT // FRAME
    first = _bin(150)
    count = (_bin(3700) - first) // padding
    bands = power[first : first + count * padding].reshape(count, padding).mean(axis=1)  # as if not padded
    return float(np.exp(np.log(bands + 1e-12).mean()) / (bands.mean() + 1e-12))


def _fundamental(amplitude: Floats) -> float:
    """Frequency in Hz between a semitone below c4 and one above c5 whose harmonics add up to most.

    A harmonic counts less the higher it is, or a note an octave below would explain a sine just as well.
    """
    candidates = np.geomspace(note_frequency("c4") / 1.06, note_frequency("c5") * 1.06, 700)
    salience = sum(amplitude[_bins(candidates * number)] / number for number in (1, 2, 3, 4))
    return float(candidates[int(np.argmax(salience))])


def _pitch(frequency: float) -> str:
    cents = {pitch: abs(1200 * np.log2(frequency / note_frequency(pitch))) for pitch in PITCHES}
    nearest = min(cents, key=lambda pitch: cents[pitch])
    return nearest if cents[nearest] < OUT_OF_TUNE else ""


def _timbre(amplitude: Floats, frequency: float) -> str:
    first, second, third = (_peak(amplitude, number * frequency) for number in (1, 2, 3))
    if second > EVEN * first:
        return "saw"
    return "square" if third > ODD * first else "sine"


def _peak(amplitude: Floats, frequency: float) -> float:
    return float(amplitude[_bin(frequency * 0.97) : _bin(frequency * 1.03) + 1].max())


def _bin(frequency: float) -> int:
    return round(frequency * FFT / SAMPLE_RATE)


def _bins(frequencies: Floats) -> npt.NDArray[np.int64]:
    return np.rint(frequencies * FFT / SAMPLE_RATE).astype(np.int64)
