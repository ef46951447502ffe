"""Read the clips of `evaluate` once and compute the measures of sound that need no models.

Shapes: audio float32 [samples]; log-mel spectra (dB) [MEL_BANDS, frames].
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from magnet_train.audio.log_mel import log_mel_distance
from magnet_train.audio.recording import header_of
from magnet_train.cli.console import ProgressBar
from magnet_train.cli.evaluation.clips import EvaluatedClip, Pair, Side
from magnet_train.errors import UserError, require_extra
from magnet_train.evaluation.sound import (
    ClipSound,
    PairedDistance,
    SideSound,
    SpectrumDistance,
    TempoAgreement,
    measure_clip,
    measure_spectrum,
    measure_tempo,
    summarize_pairs,
    summarize_side,
    tempo_agrees,
)

LONGEST = 120.0  # seconds analysed, from the beginning of a clip
_HIGHEST_RATE = 48_000  # Hz
_BPM = re.compile(r"\b(\d{2,3}(?:\.\d+)?)[ -]?bpm\b", re.IGNORECASE)


@dataclass(frozen=True)
class SoundComparison:
    """Measures of both sides and of their differences."""

    sample_rate: int  # Hz, at which both sides were analysed
    generated: SideSound
    reference: SideSound
    spectrum: SpectrumDistance | None  # None if a side is silent
    log_mel: PairedDistance | None  # None without pairs
    tempo_of_caption: TempoAgreement | None  # None without captions that name a tempo, or without tempi
    tempo_of_pair: TempoAgreement | None  # None without pairs whose reference has a reliable tempo
    no_tempo: str | None  # why no tempo was estimated, a sentence


@dataclass
class _Hearing:
    """Measurements of the clips so far, by `id(clip)`."""

    sample_rate: int
    with_tempo: bool
    bar: ProgressBar
    sounds: dict[int, ClipSound] = field(default_factory=dict)

    def hear(self, clip: EvaluatedClip) -> Tensor | None:
        """Measure a clip and return its log-mel spectrum; None, and a `problem`, if it cannot be read."""
        kept: list[Tensor] = []
        missing = round(LONGEST * self.sample_rate)
        try:
            for block in clip.blocks(self.sample_rate):
                if missing and block.shape[-1]:
                    kept.append(block[0, :missing])
                    missing -= len(kept[-1])
        except UserError as error:
            clip.problem = f"unreadable: {error}"
            return None
        finally:
            self.bar.advance()
        self.sounds[id(clip)], levels = measure_clip(torch.cat(kept), self.sample_rate, self.with_tempo)
        return levels

    def hear_others(self, side: Side) -> None:
        """Measure the remaining clips of a side; raises `UserError` if none of its clips can be read."""
        for clip in side.clips:
            if id(clip) not in self.sounds:
                self.hear(clip)
        if not side.clips:
            raise UserError(f"no file in {side.path} can be read; replace them.")

    def of(self, clips: Iterable[EvaluatedClip]) -> list[ClipSound]:
        return [self.sounds[id(clip)] for clip in clips]


def compare_sound(generated: Side, reference: Side, pairs: list[Pair], seed: int) -> SoundComparison:
    """Read and measure all clips; those that cannot be read get a `problem`.

    Raises:
        UserError: No clip of a side can be read.
    """
    no_tempo = _why_no_tempo()
    sides = (generated, reference)
    rate = _common_rate(sides)
    clips = sum(len(side.clips) for side in sides)
    with ProgressBar("listening", "clips", clips, transient=True) as bar:
        hearing = _Hearing(rate, no_tempo is None, bar)
        log_mel = _hear_pairs(hearing, pairs, seed)
        for side in sides:
            hearing.hear_others(side)
    usable = [pair for pair in pairs if all(clip.problem is None for clip in pair)]
    return SoundComparison(
        sample_rate=rate,
        generated=_summarize(hearing, generated),
        reference=_summarize(hearing, reference),
        spectrum=measure_spectrum(hearing.of(generated.clips), hearing.of(reference.clips), seed),
        log_mel=log_mel,
        tempo_of_caption=None if no_tempo else _tempo_of_captions(hearing, generated, reference, seed),
        tempo_of_pair=None if no_tempo else _tempo_of_pairs(hearing, usable, seed),
        no_tempo=no_tempo,
    )


def _why_no_tempo() -> str | None:
    try:
        require_extra("librosa", "describe", "the tempo")
    except UserError as error:
        return str(error)
    return None


def _common_rate(sides: Iterable[Side]) -> int:
    """Return the lower of both sides' most common sample rates (Hz): one side could have no content above it."""
    rates = []
    for side in sides:
        found = Counter(header_of(clip.file.source())[1] for clip in side.clips)
        del found[0]  # no plausible header
        if found:
            rates.append(max(found, key=lambda rate: (found[rate], rate)))
    return min([*rates, _HIGHEST_RATE])


def _hear_pairs(hearing: _Hearing, pairs: list[Pair], seed: int) -> PairedDistance | None:
    """Measure the clips of pairs, pair by pair, so that few spectra are in memory at a time."""
    own, chance, other_real = [], [], []
    before: Tensor | None = None  # spectrum of the reference of the last pair
    for clip, original in pairs:
        real, ours = hearing.hear(original), hearing.hear(clip)
        if real is None or ours is None:
            continue
        own.append(log_mel_distance(real, ours))
        if before is not None:
            chance.append(log_mel_distance(before, ours))
            other_real.append(log_mel_distance(before, real))
        before = real
    return summarize_pairs(own, chance, other_real, seed)


def _summarize(hearing: _Hearing, side: Side) -> SideSound:
    clips = side.clips
    return summarize_side(
        hearing.of(clips),
        [clip.full_scale for clip in clips],
        [clip.silent for clip in clips],
        hearing.with_tempo,
    )


def _tempo_of_captions(
    hearing: _Hearing, generated: Side, reference: Side, seed: int
) -> TempoAgreement | None:
    found, asked = _asked(hearing, generated)
    real_found, real_asked = _asked(hearing, reference)
    real = float(tempo_agrees(real_found, real_asked).mean()) if real_found else None
    return measure_tempo(found, asked, real, seed)


def _asked(hearing: _Hearing, side: Side) -> tuple[list[float | None], list[float]]:
    """Return estimated and named tempo (bpm) of the clips whose captions name one."""
    named = [(clip, match) for clip in side.captioned if (match := _BPM.search(str(clip.caption)))]
    named = [(clip, match) for clip, match in named if float(match[1]) > 0]
    return [hearing.sounds[id(clip)].tempo for clip, _ in named], [float(match[1]) for _, match in named]


def _tempo_of_pairs(hearing: _Hearing, pairs: list[Pair], seed: int) -> TempoAgreement | None:
    """Compare the tempi of pairs whose reference has one."""
    tempi = [tuple(hearing.sounds[id(clip)].tempo for clip in pair) for pair in pairs]
    asked = [(ours, real) for ours, real in tempi if real is not None]
    return measure_tempo([ours for ours, _ in asked], [real for _, real in asked], 1.0, seed)
