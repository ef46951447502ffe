"""Rows and explanations of `evaluate` for the measures that need no weights, and for the nearest training clips."""

from __future__ import annotations

from collections.abc import Iterator

from magnet_train.cli.console import count
from magnet_train.cli.evaluation.sound import LONGEST, SoundComparison
from magnet_train.cli.evaluation.training_clips import TrainingDistance
from magnet_train.evaluation.sound import Levels, SideSound, TempoAgreement
from magnet_train.storage.plain_text import printable

Row = tuple[str, str, str, str, str, str]  # measure, generated, spread, chance, real sound, of

_NAMED = 3  # nearest clips


def number(value: float | None, digits: int = 3) -> str:
    """Write a measure, "" where there is none."""
    return "" if value is None else f"{value:z.{digits}f}"  # z: KL can come out a millionth below 0


def interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    """Write both ends of an interval, "" where there is none."""
    return "" if ends is None else " to ".join(number(end, digits) for end in ends)


def sound_rows(sound: SoundComparison | None) -> Iterator[Row]:
    """Yield the rows of the table, none for None."""
    if sound is None:
        return
    if (pairs := sound.log_mel) is not None:
        own, ends, chance = number(pairs.mean, 2), interval(pairs.interval, 1), number(pairs.chance, 2)
        yield "log-mel (dB) ↓", own, ends, chance, number(0, 2), count(pairs.pairs, "pair")
    if (spectrum := sound.spectrum) is not None:
        of = f"{spectrum.generated_clips} to {count(spectrum.reference_clips, 'clip')}"
        yield "spectrum (dB) ↓", number(spectrum.distance, 2), "", "", "", of
        if (equal := spectrum.equal) is not None:
            of = f"{equal.clips} to {count(equal.reference_clips, 'clip')}"
            own, real = number(equal.generated.mean, 2), number(equal.real.mean, 2)
            yield "  equal sizes", own, f"± {equal.generated.std:.2f}", "", real, of
    yield from _tempo_row("tempo, caption ↑", sound.tempo_of_caption, "caption")
    yield from _tempo_row("tempo, pair ↑", sound.tempo_of_pair, "pair")
    yield from _side_rows(sound.generated, sound.reference)


def _tempo_row(name: str, found: TempoAgreement | None, noun: str) -> Iterator[Row]:
    if found is not None:
        ends, of = interval(found.interval, 2), count(found.clips, noun)
        yield name, number(found.share, 2), ends, number(found.chance, 2), number(found.real, 2), of


def _side_rows(ours: SideSound, real: SideSound) -> Iterator[Row]:
    of = f"{ours.clips} / {count(real.clips, 'clip')}"
    levels = {"loudness (LUFS)": (ours.loudness, real.loudness), "tilt (dB/octave)": (ours.tilt, real.tilt)}
    for name, (own, others) in levels.items():
        yield name, *_level(own), "", " ".join(_level(others)), of
    shares = {
        "full scale (%)": (ours.full_scale, real.full_scale),
        "silent part (%)": (ours.silent_frames, real.silent_frames),
        "silent clips (%)": (ours.silent_clips, real.silent_clips),
    }
    for name, (share, other) in shares.items():
        yield name, number(100 * share, 2), "", "", number(100 * other, 2), of


def _level(levels: Levels | None) -> tuple[str, str]:
    return ("", "") if levels is None else (f"{levels.mean:.1f}", f"± {levels.std:.1f}")


def training_rows(found: TrainingDistance | None) -> Iterator[Row]:
    """Yield the rows of the table, none for None."""
    if found is None:
        return
    ours, real, copies = found.generated, found.held_out, found.copies
    of = f"{ours.clips} / {count(real.clips, 'clip')}"
    yield "from training", number(ours.median), "", "", number(real.median), of
    yield "  nearest 5 %", number(ours.low), "", "", number(real.low), of
    if copies is not None:
        yield "  of copies", "", "", "", number(copies.median), count(copies.clips, "clip")


def explain_sound(sound: SoundComparison) -> Iterator[str]:
    """Yield a line on each measure in the table."""
    if sound.log_mel is not None:
        other = sound.log_mel.other_real
        unrelated = "" if other is None else f" Two references of different pairs get {number(other, 2)}."
        yield (
            "log-mel: mean difference of the spectrograms of a pair in 64 bands, frame by frame. Chance: the reference of "
            f"another pair.{unrelated}"
        )
    if sound.spectrum is not None:
        yield (
            "spectrum: mean difference of the average spectra of both sides, without their loudness. Equal sizes: as many "
            "generated and real clips, each against the rest of the reference."
        )
    if sound.tempo_of_caption is not None or sound.tempo_of_pair is not None:
        yield (
            "tempo: share of clips whose tempo is within 4 % of that of the caption or the reference, or of its half or "
            "double. Chance: the tempo of another clip."
        )
    yield (
        "loudness, tilt: mean ± standard deviation over clips. Full scale: share of samples there, a sign of clipping. "
        f"Clips are analysed in mono at {sound.sample_rate} Hz, up to their first {LONGEST:g} s."
    )


def explain_training(found: TrainingDistance) -> Iterator[str]:
    """Yield explanations of the distances, and the nearest clips."""
    yield (
        "from training: median share of tokens of the first codebook that differ from the nearest of "
        f"{count(found.training_clips, 'training clip')}; 0 for a copy. Real sound: held-out clips. Copies: training clips "
        "that went through the codec once more, as generated clips do."
    )
    ours = found.generated.clips
    yield (
        f"  {found.nearer_than_held_out} of {count(ours, 'generated clip')} nearer than 95 % of the held-out ones; "
        f"{0.05 * ours:.1f} are expected of a model that copies nothing."
    )
    for name, near in found.nearest[:_NAMED]:
        place = f"{near.frame / found.frame_rate:z.1f} s of {printable(near.key)}"
        yield f"  nearest: {printable(name)} at {number(near.distance)} from {place}"


def sound_notes(sound: SoundComparison) -> Iterator[str]:
    """Yield the reason for missing tempi."""
    if sound.no_tempo is not None:
        yield f"no tempo is compared: {sound.no_tempo}"


def training_notes(found: TrainingDistance) -> Iterator[str]:
    """Yield reservations about the distances."""
    copies = found.copies
    if copies is not None and found.held_out.median <= copies.median:
        yield (
            f"the held-out clips in {printable(found.held_out_source)} are as near to the training clips as copies are. If "
            "the model was trained on them, give others with --val_shards; else this codec cannot tell copies."
        )
    if found.damage is not None:
        yield f"{count(found.damaged_clips, 'training clip')} left out: {printable(found.damage)}"
