"""Draw clips from the files of a folder: a bounded number of seconds, spread over all files, some held out.

Shapes: clips float [N, samples], excerpts float [samples]; mono.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.tokenize.audio_files import AudioFile, list_audio
from magnet_train.apps.codec_training import SAMPLE_RATES
from magnet_train.apps.codec_training.recipe import FRAME_RATE, Recipe
from magnet_train.audio import AudioStream
from magnet_train.audio.recording import header_of
from magnet_train.errors import UserError

CLIP_FRAMES = 48
PIECE_FRAMES = 10 * CLIP_FRAMES  # read at a time
HELD_OUT_FILES, HELD_OUT_SHARE, HELD_OUT_SECONDS = 8, 0.1, 10.0
HELD_OUT_FRAMES = 12  # least length of an excerpt
FEW_FILES = 5  # fewer: the end of each is held out, instead of whole files
FRAMES_PER_ENTRY = 10  # least number of training frames per codebook entry
SILENT_SHARE = 0.02  # silent clips added, as a share of the others
SILENCE = 2e-3  # largest peak-to-peak range of a silent clip
LEAST_CARD = 16
# Sounds are told apart by their loudness in bands: by waveform, each phase of one sound would count as another.
BANDS, SOUND_WINDOW, SOUND_FRAMES, SAME_SOUND_DB = 24, 0.04, 2000, 3.0
ENTRIES_PER_SOUND = 16


@dataclass(frozen=True)
class Span:
    """A part of a file, in seconds."""

    file: AudioFile
    start: float
    end: float


@dataclass(frozen=True)
class Excerpts:
    """Clips and held-out excerpts drawn from a folder."""

    clips: Tensor  # training clips, float [N, samples], in random order; a few are silent, so that silence has a code
    seconds: float  # of sound in `clips`
    held_out: dict[str, Tensor]  # file -> excerpt, float [samples], a whole number of frames
    files: int  # number of files listed
    left_out: dict[str, str]  # file -> reason


def draw_excerpts(
    folder: Path, recipe: Recipe, seconds: float, seed: int, report: Callable[[float], None]
) -> Excerpts:
    """Read clips to train on, and excerpts of the files that are held out.

    Args:
        folder: Searched recursively; or a list of files, as for `tokenize`.
        recipe: Gives the sample rate, and how much sound is needed.
        seconds: Sound to draw, at most.
        seed: Seed of the draw.
        report: Called with the share that was read, 0..1.

    Raises:
        UserError: No file can be read, all have a lower rate, or there is too little sound or too little variety.
    """
    rng = np.random.default_rng(seed)
    left_out: dict[str, str] = {}
    spans, files = _spans(folder, recipe.sample_rate, left_out)
    training, held_out = _split(spans, rng)
    drawn = _draw_clips(training, recipe, seconds, rng, left_out, report)
    _require_enough(folder, len(drawn), recipe, left_out)
    clips = torch.stack(drawn)
    _require_variety(folder, clips, recipe)
    silent = torch.zeros(max(1, round(SILENT_SHARE * len(clips))), clips.shape[1])
    order = torch.from_numpy(rng.permutation(len(clips) + len(silent)))
    excerpts = _excerpts(held_out, recipe, rng, left_out)
    sound = len(clips) * CLIP_FRAMES / FRAME_RATE
    return Excerpts(torch.cat([clips, silent])[order], sound, excerpts, files, left_out)


def _draw_clips(
    spans: Sequence[Span],
    recipe: Recipe,
    seconds: float,
    rng: np.random.Generator,
    left_out: dict[str, str],
    report: Callable[[float], None],
) -> list[Tensor]:
    clips: list[Tensor] = []
    there = sum(span.end - span.start for span in spans)
    most = round(seconds * FRAME_RATE / CLIP_FRAMES)
    for piece in _in_table_order(_pieces(spans, rng), -(-most * CLIP_FRAMES // PIECE_FRAMES)):
        report(min(1.0, len(clips) * CLIP_FRAMES / FRAME_RATE / min(seconds, there)))
        if len(clips) >= most:
            break
        if (audio := _read(piece, recipe, left_out)) is not None:
            clips.extend(clip for clip in _clips(audio, recipe.hop) if not _is_silent(clip))
    return clips[:most]


def _excerpts(
    spans: Sequence[Span], recipe: Recipe, rng: np.random.Generator, left_out: dict[str, str]
) -> dict[str, Tensor]:
    """Read a few seconds of each span, from a random place, until there are enough."""
    excerpts: dict[str, Tensor] = {}
    for span in spans:
        start = span.start + rng.random() * max(0.0, span.end - span.start - HELD_OUT_SECONDS)
        part = Span(span.file, start, min(span.end, start + HELD_OUT_SECONDS))
        audio = None if len(excerpts) == HELD_OUT_FILES else _read(part, recipe, left_out)
        if audio is not None and not _is_silent(audio) and len(audio) >= HELD_OUT_FRAMES * recipe.hop:
            excerpts[span.file.name + span.file.segment] = audio[: len(audio) // recipe.hop * recipe.hop]
    return excerpts


def _spans(folder: Path, sample_rate: int, left_out: dict[str, str]) -> tuple[list[Span], int]:
    """Return the files that their headers show to be usable, as spans, and the number of all files."""
    spans, rates = [], [0]
    files = list_audio(folder)
    for file in files:
        seconds, rate = _header(file)
        start, end = file.start or 0.0, seconds if file.end is None else min(seconds, file.end)
        if end <= start:
            left_out[file.name] = file.problem or "its header gives no length; convert it to wav or flac"
        elif rate < sample_rate:
            rates.append(rate)
            left_out[file.name] = f"has {rate} Hz, less than the codec"
        else:
            spans.append(Span(file, start, end))
    if not spans and max(rates):
        lower = [rate for rate in SAMPLE_RATES if rate <= max(rates)]
        remedy = f"give --sample_rate {lower[-1]}" if lower else f"record at {SAMPLE_RATES[0]} Hz or more"
        raise UserError(
            f"the files in {folder} have at most {max(rates)} Hz, so a codec of {sample_rate} Hz would have nothing to "
            f"learn above {max(rates) // 2} Hz; {remedy}."
        )
    if not spans:
        name, reason = next(iter(left_out.items()))
        raise UserError(
            f"no file in {folder} can be read, for example {name} ({reason}); name another --audio."
        )
    return spans, len(files)


def _header(file: AudioFile) -> tuple[float, int]:
    """Return duration (s) and rate (Hz); 0 if the file cannot be read."""
    try:
        return (0.0, 0) if file.problem else header_of(file.source())
    except UserError:
        return 0.0, 0


def _split(spans: Sequence[Span], rng: np.random.Generator) -> tuple[list[Span], list[Span]]:
    """Divide spans into training and held-out ones; by file, or with few files by time within each."""
    files: defaultdict[Path, list[Span]] = defaultdict(list)  # a list may name several parts of a file
    for span in spans:
        files[span.file.path].append(span)
    if len(files) < FEW_FILES:
        ends = [span.end - HELD_OUT_SHARE * (span.end - span.start) for span in spans]
        training = [Span(s.file, s.start, end) for s, end in zip(spans, ends, strict=True)]
        return training, [Span(s.file, end, s.end) for s, end in zip(spans, ends, strict=True)]
    parts = list(files.values())
    order = [parts[int(number)] for number in rng.permutation(len(parts))]
    most = max(2, min(round(HELD_OUT_SHARE * len(parts)), 2 * HELD_OUT_FILES))  # some may be silent
    return [span for file in order[most:] for span in file], [file[0] for file in order[:most]]


def _pieces(spans: Sequence[Span], rng: np.random.Generator) -> Iterator[Span]:
    """Cut spans into pieces of a few seconds, in random order."""
    seconds = PIECE_FRAMES / FRAME_RATE
    clip = CLIP_FRAMES / FRAME_RATE  # the last piece of a file is at least a clip long
    counts = np.array([1 + max(0, int((span.end - span.start - clip) / seconds)) for span in spans])
    ends = counts.cumsum()
    for number in rng.permutation(ends[-1]).tolist():
        index = int(np.searchsorted(ends, number, side="right"))
        span = spans[index]
        start = span.start + seconds * (number - (ends[index] - counts[index]))
        yield Span(span.file, float(start), min(span.end, float(start) + seconds))


def _in_table_order(pieces: Iterator[Span], number: int) -> Iterator[Span]:
    """Sort each `number` of pieces by their rows: a table is read forwards, and going back takes long."""
    while batch := list(islice(pieces, max(1, number))):
        yield from sorted(batch, key=_row)


def _row(piece: Span) -> tuple[str, int]:
    cell = piece.file.cell
    return ("", 0) if cell is None else (str(cell.table), cell.row)


def _read(span: Span, recipe: Recipe, left_out: dict[str, str]) -> Tensor | None:
    try:
        stream = AudioStream(span.file.source(), recipe.sample_rate, 1, span.start, span.end)
        audio = torch.cat(list(stream), dim=-1)[0]
    except UserError as error:
        left_out[span.file.name] = str(error)
        return None
    return audio if stream.swing > SILENCE else None


def _clips(audio: Tensor, hop: int) -> Sequence[Tensor]:
    """Cut audio into clips; audio shorter than a clip is padded with silence."""
    samples = CLIP_FRAMES * hop
    if len(audio) < samples:
        return [torch.nn.functional.pad(audio, (0, samples - len(audio)))]
    return audio[: len(audio) // samples * samples].view(-1, samples).unbind()


def _is_silent(audio: Tensor) -> bool:
    return bool(audio.max() - audio.min() <= SILENCE)


def _require_enough(folder: Path, clips: int, recipe: Recipe, left_out: dict[str, str]) -> None:
    seconds = clips * CLIP_FRAMES / FRAME_RATE
    needed = recipe.card * FRAMES_PER_ENTRY / FRAME_RATE
    if not clips:
        reasons = f" ({next(iter(left_out.values()))})" if left_out else ""
        raise UserError(
            f"{folder} holds only silence or files that cannot be read{reasons}; name another --audio."
        )
    if seconds < needed:
        card = 2 ** int(np.log2(max(1.0, seconds * FRAME_RATE / FRAMES_PER_ENTRY)))
        smaller = f", or give --card {card}" if card >= LEAST_CARD else ""
        raise UserError(
            f"{folder} holds {seconds:.0f} s of sound to train on, and codebooks of {recipe.card} entries need "
            f"{needed:.0f} s; add recordings{smaller}."
        )


def _require_variety(folder: Path, clips: Tensor, recipe: Recipe) -> None:
    needed = max(2, recipe.card // ENTRIES_PER_SOUND)
    found = _count_sounds(clips, recipe.sample_rate, needed)
    if found < needed:
        raise UserError(
            f"{folder} repeats few sounds ({found} that differ by more than {SAME_SOUND_DB:g} dB), and codebooks of "
            f"{recipe.card} entries need {needed}; add other recordings."
        )


def _count_sounds(clips: Tensor, sample_rate: int, enough: int) -> int:
    """Count different spectra among at most `SOUND_FRAMES` evenly spread frames, up to `enough`."""
    window = round(SOUND_WINDOW * sample_rate)
    frames = clips.unfold(1, window, window).flatten(0, 1)
    frames = frames[:: max(1, len(frames) // SOUND_FRAMES)] * torch.hann_window(window)
    power = torch.fft.rfft(frames).abs().square()[:, 1:]
    edges = np.unique(np.geomspace(1, power.shape[1], BANDS + 1).round().astype(int) - 1)
    parts = [
        power[:, low:high].mean(dim=1) for low, high in zip(edges, [*edges[1:], power.shape[1]], strict=True)
    ]
    bands = torch.stack([part for part in parts if part.isfinite().all()], dim=1)
    levels = 10 * torch.log10(bands + 1e-6 * bands.max())
    sounds = levels[:1]
    for frame in levels[1:]:
        if len(sounds) >= enough:
            break
        if ((sounds - frame).square().mean(dim=1).sqrt() > SAME_SOUND_DB).all():
            sounds = torch.cat([sounds, frame[None]])
    return len(sounds)
