"""Measure pitch, timbre and rhythm of a clip from its audio, and score clips against captions; nothing is learned.

Shapes: audio float [samples] at 8 kHz. Each window of 1.28 s is read separately: one event over two windows reads as
the same event twice, two events as one each. A value that cannot be read is "".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.tones.captions import ATTRIBUTES, PITCHES, Caption, Event
from harness.tones.world import PERIOD, SAMPLE_RATE, WINDOW, note_frequency
from magnet_train.apps.quickstart.synthetic import shuffled_accuracy

Floats = npt.NDArray[np.floating]
Readings = list[list[Event]]  # of each clip, one event per window

STEP = 80  # samples (10 ms) between two values of the loudness curve
FFT = 4096  # 2 Hz between bins: a frame of 512 samples, padded
FRAME, HOP = 512, 128  # samples
SILENCE = 0.01  # root mean square of the loudest step of a silent window, at most
FLAT = 0.25  # spectral flatness of noise, at least; white noise has about .9, a tone below .1
EVEN = 0.2  # second harmonic over the first in a sawtooth, at least; it has .5, the other waves none
ODD = 0.12  # third harmonic over the first in a square wave, at least; it has .33, a sine none
OUT_OF_TUNE = 60  # cents from the nearest note beyond which a tone has no pitch
UNEVEN = 0.25  # of a period: a pulse interval whose error is larger is a stumble


def read_clips(clips: Iterable[Floats]) -> Readings:
    """Read every clip by `read_clip`."""
    return [read_clip(audio) for audio in clips]


def read_clip(audio: Floats) -> list[Event]:
    """Return the event of each window of a clip, float [samples]; a last part below half a window is ignored."""
    windows = max(1, round(len(audio) / WINDOW))
    return [read_window(audio[index * WINDOW : (index + 1) * WINDOW]) for index in range(windows)]


def read_window(audio: Floats) -> Event:
    """Return the event of one window, float [samples]; in silence all values are ""."""
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


def expected_windows(events: Sequence[Event], windows: int) -> list[Event]:
    """Return the event that each window of a clip should have: one event fills them all, two share them."""
    return [events[index * len(events) // windows] for index in range(windows)]


def accuracy(captions: Sequence[Caption], readings: Readings) -> dict[str, float]:
    """Return how often each attribute is as captioned, 0..1, over all windows of all clips.

    Noise has no pitch, so its captions do not count for pitch. Captions and readings are in the same order.

    Raises:
        ValueError: The numbers of captions and readings differ, or no caption has a pitch.
    """
    right, total = dict.fromkeys(ATTRIBUTES, 0), dict.fromkeys(ATTRIBUTES, 0)
    for caption, reading in zip(captions, readings, strict=True):
        for event, read in zip(expected_windows(caption.events, len(reading)), reading, strict=True):
            for attribute in ATTRIBUTES:
                if value := getattr(event, attribute):
                    total[attribute] += 1
                    right[attribute] += value == getattr(read, attribute)
    if not all(total.values()):
        raise ValueError(f"nothing to score: the captions have {total} windows with each attribute")
    return {attribute: right[attribute] / total[attribute] for attribute in ATTRIBUTES}


def chance(captions: Sequence[Caption], readings: Readings, seed: int = 0) -> dict[str, float]:
    """Return the accuracy of clips against shuffled captions."""
    return shuffled_accuracy(accuracy, captions, readings, seed)


def evenness(captions: Sequence[Caption], clips: Iterable[Floats]) -> float:
    """Return the share of the intervals between pulses that have the captioned period, 0..1.

    `accuracy` reads the median interval of a window; a single stumble, as at a bad seam, shows only here. Only
    captions of one slow or fast event count.
    """
    even = []
    for caption, audio in zip(captions, clips, strict=True):
        (period, *others) = {PERIOD.get(event.rhythm) for event in caption.events}
        if period is not None and not others:
            starts = np.flatnonzero(np.diff(_sounding(_loudness(audio)).astype(int)) == 1)
            even += list(np.abs(np.diff(starts) * STEP / period - 1) < UNEVEN)
    return float(np.mean(even))


def _loudness(audio: Floats) -> Floats:
    """Return the root mean square over 20 ms, every 10 ms, [steps]."""
    steps = len(audio) // STEP
    power = (np.asarray(audio[: steps * STEP], dtype=np.float64).reshape(steps, STEP) ** 2).mean(axis=1)
    return np.asarray(np.sqrt(np.convolve(power, [0.5, 0.5], mode="same")))


def _rhythm(loudness: Floats) -> str:
    """Return "steady" for a sound without gaps, else the rhythm with the nearest period."""
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
    """Return where it sounds, bool [steps].

    A sound starts at half of the loud level and ends at a quarter; one threshold would chop up noise.
    """
    loud = np.quantile(loudness, 0.9)
    sounding = np.zeros(len(loudness), dtype=bool)
    on = False
    for index, value in enumerate(loudness):
        on = value > 0.25 * loud if on else value > 0.5 * loud
        sounding[index] = on
    return sounding


def _spectrum(audio: Floats) -> Floats:
    """Return the mean power of the frames with at least half of the highest energy, [FFT // 2 + 1]."""
    starts = np.arange(0, max(1, len(audio) - FRAME + 1), HOP)
    frames = np.stack([audio[start : start + FRAME] for start in starts]) * np.hanning(FRAME)
    energy = (frames**2).sum(axis=1)
    return np.asarray((np.abs(np.fft.rfft(frames[energy >= 0.5 * energy.max()], FFT)) ** 2).mean(axis=0))


def _flatness(power: Floats) -> float:
    """Return the geometric over the arithmetic mean of the power from 150 to 3700 Hz, 0..1."""
    padding = FFT // FRAME
    first = _bin(150)
    count = (_bin(3700) - first) // padding
    bands = power[first : first + count * padding].reshape(count, padding).mean(axis=1)  # as if not padded
    return float(np.exp(np.log(bands + 1e-12).mean()) / (bands.mean() + 1e-12))


def _fundamental(amplitude: Floats) -> float:
    """Return the frequency (Hz) from a semitone below c4 to one above c5 with the strongest harmonics.

    Harmonic n is divided by n, or the note an octave below a sine would fit as well.
    """
    candidates = np.geomspace(note_frequency("c4") / 1.06, note_frequency("c5") * 1.06, 700)
    salience = sum(amplitude[_bin(candidates * number)] / number for number in (1, 2, 3, 4))
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


def _bin(frequency: float | Floats) -> Any:
    """Return the bin of a frequency (Hz), or of each in an array."""
    return np.rint(frequency * FFT / SAMPLE_RATE).astype(np.int64)
