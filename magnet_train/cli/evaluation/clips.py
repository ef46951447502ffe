"""The clips of `evaluate`: which there are, what their captions are, and which belong together.

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


@dataclass
class EvaluatedClip:
    """A clip on either side.

    Args:
        file: Where it lies.
        name: What pairs it: its name without folder and suffix.
        id: What else may pair it: the id of the prompt that it was made from, if `generate` made it.
        caption: Its own, or that of its reference; None without one.
        seconds: Its length, once it was read.
        silent: Whether nothing is to be heard in it, once it was read.
        shortfall: What of it could not be read, once that is known.
        problem: Why it cannot be used after all, once that is known.
    """

    file: AudioFile
    name: str
    id: str | None = None
    caption: str | None = None
    seconds: float = 0.0
    silent: bool = False
    shortfall: str | None = None
    problem: str | None = None

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


@dataclass
class Side:
    """All clips of one side.

    Args:
        path: Where they lie.
        listed: Those that seemed usable before any was opened.
        refused: Files that are not even listed, with reasons.
        problems: Captions that are there and cannot be read.
    """

    path: Path
    listed: list[EvaluatedClip] = field(default_factory=list)
    refused: list[Skipped] = field(default_factory=list)
    problems: list[Skipped] = field(default_factory=list)

    @property
    def clips(self) -> list[EvaluatedClip]:
        """Those that can be used, as far as is known."""
        return [clip for clip in self.listed if clip.problem is None]

    @property
    def captioned(self) -> list[EvaluatedClip]:
        """Those of them with a caption."""
        return [clip for clip in self.clips if clip.caption is not None]

    @property
    def left_out(self) -> list[Skipped]:
        """All files that cannot."""
        broken = [Skipped(clip.file.label, clip.problem) for clip in self.listed if clip.problem is not None]
        return [*self.refused, *broken]

    @property
    def partial(self) -> list[Skipped]:
        """Clips of which a part was read."""
        return [
            Skipped(clip.file.label, f"partial: {clip.shortfall}")
            for clip in self.clips
            if clip.shortfall is not None
        ]


@dataclass(frozen=True)
class Pairs:
    """Which clips belong together.

    Args:
        generated: One side.
        reference: The other.
        listed: Generated clip and its reference, in the order of the references.
    """

    generated: Side
    reference: Side
    listed: list[tuple[EvaluatedClip, EvaluatedClip]]

    @property
    def pairs(self) -> list[tuple[EvaluatedClip, EvaluatedClip]]:
        """Those of which both can be used, as far as is known."""
        return [pair for pair in self.listed if all(clip.problem is None for clip in pair)]

    def unpaired(self, side: Side) -> list[str]:
        """Return the names of usable clips of a side whose other half is missing or cannot be used."""
        paired = {id(clip) for pair in self.pairs for clip in pair}
        return [clip.file.name for clip in side.clips if id(clip) not in paired]


def read_side(source: Path) -> Side:
    """List clips with their captions; no audio is read.

    Raises:
        UserError: There is no such folder, or no audio in it.
    """
    side = Side(source)
    results = _Results(side.problems)
    for file in list_audio(source):
        if file.problem is not None:
            side.refused.append(Skipped(file.label, file.problem))
            continue
        try:
            require_audio_file(file.path)
        except UserError as error:
            side.refused.append(Skipped(file.label, f"unreadable: {error}"))
            continue
        record = results.of(file.path)
        clip = EvaluatedClip(file, PurePath(file.name).stem)
        # made without a caption it has a number as its id, which says nothing of the reference
        clip.id = None if None in (record.get("id"), record.get("text")) else str(record["id"])
        try:
            clip.caption = describe(file.path, {**file.fields, **_caption_of(record)})["text"]
        except CaptionError as error:
            if not str(error).startswith("no caption"):
                side.problems.append(Skipped(file.label, str(error)))
        side.listed.append(clip)
    return side


def pair(generated: Side, reference: Side) -> Pairs:
    """Find the reference of each generated clip: the one of the same name, else the one named as its prompt's id.

    A name that two clips of a side share pairs none of them. A generated clip without a caption gets that of
    its reference.
    """
    real = _unique(reference.clips, [clip.name for clip in reference.clips])
    by_name = _unique(generated.clips, [clip.name for clip in generated.clips])
    by_id = _unique(generated.clips, [clip.id for clip in generated.clips])
    pairs: list[tuple[EvaluatedClip, EvaluatedClip]] = []
    paired: set[int] = set()
    for name, original in real.items():
        clip = by_name.get(name) or by_id.get(name)
        if clip is not None and id(clip) not in paired:
            pairs.append((clip, original))
            paired.add(id(clip))
            clip.caption = clip.caption if clip.caption is not None else original.caption
    return Pairs(generated, reference, pairs)


def _unique(clips: Sequence[EvaluatedClip], names: Iterable[str | None]) -> dict[str, EvaluatedClip]:
    names = list(names)
    count = Counter(names)
    return {
        name: clip for name, clip in zip(names, clips, strict=True) if name is not None and count[name] == 1
    }


def _caption_of(record: dict[str, Any]) -> dict[str, Any]:
    return {"text": record["text"]} if isinstance(record.get("text"), str) else {}


class _Results:
    """What `generate` wrote about its clips, of each folder read once.

    Args:
        problems: Where to add files that cannot be read.
    """

    def __init__(self, problems: list[Skipped]) -> None:
        self._problems = problems
        self._folders: dict[Path, dict[str, dict[str, Any]]] = {}

    def of(self, file: Path) -> dict[str, Any]:
        """Return the record of an audio file, empty if there is none."""
        if file.parent not in self._folders:
            self._folders[file.parent] = self._read(file.parent / RESULTS)
        return self._folders[file.parent].get(file.name, {})

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        if not path.is_file():
            return {}
        try:
            records = [load_json(line) for line in lines_of(decode_text(path.read_bytes())) if line.strip()]
            return {record["file"]: record for record in records}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._problems.append(Skipped(str(path), f"unreadable caption: {error}"))
            return {}
