"""Plan the update of a folder of shards to a list of files: samples to add, to remove and to recaption."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import NamedTuple, TypeGuard

from datamodules.tokenize.audio_files import make_key
from datamodules.tokenize.sources import Known, Source


class Fate(Enum):
    """What to do about a file."""

    NEW = "read and encode it"
    KEPT = "nothing"
    RECAPTIONED = "copy its tokens, with the new caption"


class Entry(NamedTuple):
    """A file of the list."""

    fate: Fate
    source: Source
    known: Known | None  # its record in `sources.jsonl.gz`, None if it is new


class Plan(NamedTuple):
    """What to do about each file."""

    entries: list[Entry]  # in the order of the list
    gone: list[Known]  # files that are no longer in the list, and those whose audio changed

    @property
    def new(self) -> list[Source]:
        """The files to read and encode."""
        return [entry.source for entry in self.entries if entry.fate is Fate.NEW]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.gone and all(entry.fate is Fate.KEPT for entry in self.entries)

    def __str__(self) -> str:
        """Count clips: "12 new, 1 removed, 3 captions changed, 985 kept"."""
        clips = [entry.fate for entry in self.entries if entry.fate is Fate.NEW or _has_sample(entry.known)]
        captions = clips.count(Fate.RECAPTIONED)
        return (
            f"{clips.count(Fate.NEW)} new, {sum(map(_has_sample, self.gone))} removed, "
            f"{captions} caption{'' if captions == 1 else 's'} changed, {clips.count(Fate.KEPT)} kept"
        )


def make_plan(before: Sequence[Known], sources: Sequence[Source]) -> Plan:
    """Compare a list of files with those that a folder was made from; new ones get keys that no other sample has."""
    waiting: defaultdict[tuple[str, float | None, float | None], list[Known]] = defaultdict(list)
    for was in before:
        waiting[was.part].append(was)
    pairs: list[tuple[Source, Known | None]] = []
    for source in sources:
        same_part = waiting[source.file.name, source.file.start, source.file.end]
        pairs.append((source, same_part.pop(0) if same_part else None))
    fates = [_fate(source, known) for source, known in pairs]
    stays = [known for fate, (_, known) in zip(fates, pairs, strict=True) if fate is not Fate.NEW and known]
    audio = {known.audio for known in stays if known.key is not None}
    keys = {known.key for known in stays if known.key is not None}
    entries = []
    gone = [known for rest in waiting.values() for known in rest]
    for fate, (source, known) in zip(fates, pairs, strict=True):
        if fate is Fate.KEPT and _is_duplicate(known) and known.audio not in audio:
            fate = Fate.NEW  # the sample with the same audio will be removed
        if fate is Fate.NEW:
            file = source.file
            key = make_key(file.name, file.start, file.name + file.segment, keys)
            source = source._replace(file=replace(file, key=key))
            if known is not None:
                gone.append(known)
        entries.append(Entry(fate, source, known))
    return Plan(entries, gone)


def _fate(source: Source, known: Known | None) -> Fate:
    if known is None or known.problem != source.file.problem or known.stats[0] != source.stats[0]:
        return Fate.NEW
    if known.fields == source.fields and known.stats[1:] == source.stats[1:]:
        return Fate.KEPT
    if known.key is not None:
        return Fate.RECAPTIONED
    # a file that was left out may be usable with another caption, unless it is a duplicate
    return Fate.KEPT if known.problem is not None or _is_duplicate(known) else Fate.NEW


def _is_duplicate(known: Known | None) -> TypeGuard[Known]:
    return known is not None and known.key is None and known.audio is not None


def _has_sample(known: Known | None) -> bool:
    return known is not None and known.key is not None
