"""The clips of `evaluate`: generated and reference files, their captions, and which of them form pairs.

Shapes: audio float32 [channels, samples].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from torch import Tensor

from datamodules.tokenize.audio_files import AudioFile, list_audio
from datamodules.tokenize.caption_rules import CaptionError
from datamodules.tokenize.captions import describe
from datamodules.tokenize.report import Skipped
from magnet_train.audio.recording import require_audio_file
from magnet_train.cli.clip_folder import RESULTS, Record
from magnet_train.cli.clip_reading import MeasuredStream, Unusable, segment
from magnet_train.errors import UserError
from magnet_train.storage.file_source import FileSource
from magnet_train.storage.plain_text import lines_of, load_json, read_text


@dataclass
class EvaluatedClip:
    """A generated or reference clip; the fields from `seconds` to `shortfall` are set when it is read."""

    file: AudioFile
    name: str  # without folder and suffix, by which clips are paired
    id: str | None = None  # of its prompt, if `generate` made it from a caption; also used for pairing
    caption: str | None = None  # its own, or that of its reference
    seconds: float = 0.0
    silent: bool = False
    full_scale: float = 0.0  # share of its samples at full scale
    shortfall: str | None = None  # which part could not be read
    problem: str | None = None  # why it cannot be used, once that is known

    def blocks(self, sample_rate: int, channels: int = 1) -> Iterator[Tensor]:
        """Yield it at a model's rate, about ten seconds at a time; raises `UserError` if unreadable."""
        source = self.file.source()
        try:
            start, end = segment(self.file, source)
        except Unusable as reason:
            raise UserError(f"{self.file.label}: {reason}.") from reason
        audio = MeasuredStream(source, sample_rate, channels, start, end)
        yield from audio
        self.seconds, self.silent = audio.samples / sample_rate, audio.silence is not None
        self.full_scale, self.shortfall = audio.full_scale, audio.shortfall


Pair = tuple[EvaluatedClip, EvaluatedClip]  # generated, reference


@dataclass
class Side:
    """The generated or the reference clips."""

    path: Path  # folder or table
    listed: list[EvaluatedClip] = field(default_factory=list)  # may turn out to be unusable when read
    refused: list[Skipped] = field(default_factory=list)  # the other files
    problems: list[Skipped] = field(default_factory=list)  # captions that cannot be read

    @property
    def clips(self) -> list[EvaluatedClip]:
        """Clips not known to be unusable."""
        return [clip for clip in self.listed if clip.problem is None]

    @property
    def seconds(self) -> float:
        """Audio of the usable clips, as far as they were read."""
        return sum(clip.seconds for clip in self.clips)

    @property
    def captioned(self) -> list[EvaluatedClip]:
        """Usable clips with a caption."""
        return [clip for clip in self.clips if clip.caption is not None]

    @property
    def left_out(self) -> list[Skipped]:
        """Files that cannot be used, with reasons."""
        broken = [Skipped(clip.file.label, clip.problem) for clip in self.listed if clip.problem is not None]
        return [*self.refused, *broken]

    @property
    def partial(self) -> list[Skipped]:
        """Clips of which only a part was read."""
        short = (clip for clip in self.clips if clip.shortfall is not None)
        return [Skipped(clip.file.label, f"partial: {clip.shortfall}") for clip in short]


def read_side(source: Path) -> Side:
    """List clips with their captions, without reading audio; raises `UserError` if there is none."""
    side = Side(source)
    results: dict[Path, dict[str, Record]] = {}  # of each folder
    for file in list_audio(source):
        problem = file.problem
        try:
            if problem is None:
                audio = file.source()
                require_audio_file(audio)
        except UserError as error:
            problem = f"unreadable: {error}"
        if problem is not None:
            side.refused.append(Skipped(file.label, problem))
            continue
        folder = file.path.parent
        if folder not in results:
            results[folder] = _read_results(folder / RESULTS, side.problems)
        side.listed.append(_read_clip(file, audio, results[folder].get(file.path.name, {}), side.problems))
    return side


def _read_clip(file: AudioFile, source: FileSource, record: Record, problems: list[Skipped]) -> EvaluatedClip:
    """Look up the caption of a file, in what `generate` recorded of it first."""
    clip = EvaluatedClip(file, PurePath(file.name).stem)
    # without a caption the id is only a number, and names no reference
    clip.id = None if None in (record.get("id"), record.get("text")) else str(record["id"])
    recorded = {"text": record["text"]} if isinstance(record.get("text"), str) else {}
    try:
        clip.caption = describe(source, {**file.fields, **recorded})["text"]
    except CaptionError as error:
        if not str(error).startswith("no caption"):
            problems.append(Skipped(file.label, str(error)))
    return clip


def _read_results(path: Path, problems: list[Skipped]) -> dict[str, Record]:
    """Return the records of `generate` by file name; a damaged file becomes a problem."""
    if not path.is_file():
        return {}
    try:
        records = [load_json(line) for line in lines_of(read_text(path)) if line.strip()]
        return {record["file"]: record for record in records}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problems.append(Skipped(str(path), f"unreadable caption: {error}"))
        return {}


def pair(generated: Side, reference: Side) -> list[Pair]:
    """Find the reference of each generated clip: the one of the same name, else the one named as its prompt's id.

    A name that two clips of a side share pairs neither. A generated clip without a caption gets that of its reference.
    """
    by_name, by_id = _unique(generated.clips, "name"), _unique(generated.clips, "id")
    pairs: list[Pair] = []
    paired: set[int] = set()
    for name, original in _unique(reference.clips, "name").items():
        clip = by_name.get(name) or by_id.get(name)
        if clip is not None and id(clip) not in paired:
            pairs.append((clip, original))
            paired.add(id(clip))
            if clip.caption is None:
                clip.caption = original.caption
    return pairs


def _unique(clips: Sequence[EvaluatedClip], attribute: str) -> dict[str, EvaluatedClip]:
    """Return clips by an attribute, where no two have the same."""
    count = Counter(getattr(clip, attribute) for clip in clips)
    found = {getattr(clip, attribute): clip for clip in clips}
    return {name: clip for name, clip in found.items() if name is not None and count[name] == 1}
