"""The clips of `evaluate`: generated and reference files, their captions, and which of them form pairs.

Shapes: audio float32 [1, samples].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from datamodules.tokenize.audio_files import AudioFile, list_audio
from datamodules.tokenize.captions import CaptionError, describe
from datamodules.tokenize.report import Skipped
from magnet_train.audio import AudioStream
from magnet_train.audio.recording import require_audio_file
from magnet_train.cli.clip_folder import RESULTS
from magnet_train.cli.clip_reading import Unusable, segment, silence_of
from magnet_train.errors import UserError
from magnet_train.storage.plain_text import decode_text, lines_of, load_json

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]


@dataclass
class EvaluatedClip:
    """A clip on either side; length, silence and shortfall are known once it was read."""

    file: AudioFile
    name: str  # without folder and suffix, by which clips are paired
    id: str | None = None  # of its prompt, if `generate` made it from a caption; pairs it as well
    caption: str | None = None  # its own, or that of its reference
    seconds: float = 0.0
    silent: bool = False
    shortfall: str | None = None  # which part could not be read
    problem: str | None = None  # why it cannot be used, once that is known

    def blocks(self, sample_rate: int) -> Iterator[Tensor]:
        """Read it in mono at a model's rate, about ten seconds at a time.

        Raises:
            UserError: It cannot be read.
        """
        try:
            start, end = segment(self.file)
        except Unusable as reason:
            raise UserError(f"{self.file.label}: {reason}.") from reason
        samples, peak = 0, 0.0
        stream = AudioStream(self.file.path, sample_rate, 1, start, end)
        for block in stream:
            samples += block.shape[-1]
            peak = max(peak, float(block.abs().max())) if block.numel() else peak
            yield block
        self.seconds, self.silent = samples / sample_rate, silence_of(peak, stream.swing) is not None
        self.shortfall = stream.shortfall


Pair = tuple[EvaluatedClip, EvaluatedClip]  # generated, reference


@dataclass
class Side:
    """All clips of one side."""

    path: Path  # their folder or list
    listed: list[EvaluatedClip] = field(default_factory=list)  # usable as far as their names show
    refused: list[Skipped] = field(default_factory=list)  # the other files
    problems: list[Skipped] = field(default_factory=list)  # captions that cannot be read

    @property
    def clips(self) -> list[EvaluatedClip]:
        """Clips that can be used, as far as is known."""
        return [clip for clip in self.listed if clip.problem is None]

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
        short = [(clip.file.label, clip.shortfall) for clip in self.clips if clip.shortfall is not None]
        return [Skipped(label, f"partial: {shortfall}") for label, shortfall in short]


def read_side(source: Path) -> Side:
    """List clips with their captions; no audio is read.

    Raises:
        UserError: There is no such folder, or no audio in it.
    """
    side = Side(source)
    results: dict[Path, dict[str, Record]] = {}  # of each folder
    for file in list_audio(source):
        try:
            if file.problem is None:
                require_audio_file(file.path)
            problem = file.problem
        except UserError as error:
            problem = f"unreadable: {error}"
        if problem is not None:
            side.refused.append(Skipped(file.label, problem))
            continue
        folder = file.path.parent
        if folder not in results:
            results[folder] = _read_results(folder / RESULTS, side.problems)
        side.listed.append(_read_clip(file, results[folder].get(file.path.name, {}), side.problems))
    return side


def _read_clip(file: AudioFile, record: Record, problems: list[Skipped]) -> EvaluatedClip:
    """Look up the caption of a file, in what `generate` recorded of it first."""
    clip = EvaluatedClip(file, PurePath(file.name).stem)
    # without a caption its id is a number, which does not name a reference
    clip.id = None if None in (record.get("id"), record.get("text")) else str(record["id"])
    recorded = {"text": record["text"]} if isinstance(record.get("text"), str) else {}
    try:
        clip.caption = describe(file.path, {**file.fields, **recorded})["text"]
    except CaptionError as error:
        if not str(error).startswith("no caption"):
            problems.append(Skipped(file.label, str(error)))
    return clip


def _read_results(path: Path, problems: list[Skipped]) -> dict[str, Record]:
    """Return the records of `generate` by file name; a damaged file becomes a problem."""
    if not path.is_file():
        return {}
    try:
        records = [load_json(line) for line in lines_of(decode_text(path.read_bytes())) if line.strip()]
        return {record["file"]: record for record in records}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problems.append(Skipped(str(path), f"unreadable caption: {error}"))
        return {}


def pair(generated: Side, reference: Side) -> list[Pair]:
    """Find the reference of each generated clip: the one of the same name, else the one named as its prompt's id.

    A name that two clips of a side share pairs neither. A generated clip without a caption gets that of its reference.

    Returns:
        Pairs in the order of the references.
    """
    real = _unique(reference.clips, [clip.name for clip in reference.clips])
    by_name = _unique(generated.clips, [clip.name for clip in generated.clips])
    by_id = _unique(generated.clips, [clip.id for clip in generated.clips])
    pairs: list[Pair] = []
    paired: set[int] = set()
    for name, original in real.items():
        clip = by_name.get(name) or by_id.get(name)
        if clip is not None and id(clip) not in paired:
            pairs.append((clip, original))
            paired.add(id(clip))
            clip.caption = clip.caption if clip.caption is not None else original.caption
    return pairs


def _unique(clips: Sequence[EvaluatedClip], names: Iterable[str | None]) -> dict[str, EvaluatedClip]:
    names = list(names)
    count = Counter(names)
    return {
        name: clip for name, clip in zip(names, clips, strict=True) if name is not None and count[name] == 1
    }
