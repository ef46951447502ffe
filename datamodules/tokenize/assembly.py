"""Assemble the next state of a folder of shards from the present one and from the finished units of a job."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from datamodules.shards.index import IndexRows, key_hash, open_index, write_index
from datamodules.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest, write_manifest
from datamodules.shards.writer import scan_written
from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.commit import next_state
from datamodules.tokenize.plan import Entry, Fate, Plan
from datamodules.tokenize.report import REPORT_NAME, Report, Skipped, read_report, write_report
from datamodules.tokenize.rewriting import Edit, copy_samples
from datamodules.tokenize.schema import Schema, common_schema, conform, fits, schema_of
from datamodules.tokenize.sources import Known, write_job, write_sources
from datamodules.tokenize.work_unit import Outcome, WorkUnit
from magnet_train.storage.atomic_io import atomic_write
from magnet_train.tokens import CodecInfo

Caption: TypeAlias = Callable[
    [AudioFile], dict[str, Any] | str
]  # -> metadata, or the reason why there is none
_REMOVED = "removed"  # kind of reason in the report
_SHARD_NAME = re.compile(r"(?P<number>shard-[0-9]+)(-(?P<revision>[0-9]+))?\.tar")


class Assembly:
    """Decide which files give samples, and write the shards, index, report and manifest.

    Args:
        folder: Folder of shards.
        codec: Codec of the tokens.
        plan: What to do about each file.
        units: The finished units of the new files, in order.
        schema: Schema of the samples in the folder; None without samples, or without a common schema.
        caption: Reads the metadata of a file whose caption changed.
    """

    def __init__(
        self,
        folder: Path,
        codec: CodecInfo,
        plan: Plan,
        units: Sequence[WorkUnit],
        schema: Schema | None,
        caption: Caption,
    ) -> None:
        self._folder = folder
        self._codec = codec
        self._plan = plan
        self._schema = schema
        recaptioned = [entry for entry in plan.entries if entry.fate is Fate.RECAPTIONED]
        self._captions = {str(_known(entry).key): caption(entry.source.file) for entry in recaptioned}
        first_with = {
            known.audio: known.path
            for known in map(self._known_before, plan.entries)
            if known is not None and known.key is not None and known.audio is not None
        }
        self._units = []
        for unit in units:
            outcomes = unit.outcomes_on_disk()
            self._units.append((unit, outcomes, _without_duplicates(outcomes, first_with)))
        new = iter([outcome for _, _, decided in self._units for outcome in decided])
        self.known = [self._known_before(entry) or _known_of(entry, next(new)) for entry in plan.entries]

    @property
    def has_samples(self) -> bool:
        """Whether any file gave a sample."""
        return any(known.key is not None for known in self.known)

    @property
    def left_out(self) -> list[Skipped]:
        """The files that gave no sample, with reasons."""
        return [Skipped(known.path, known.reason) for known in self.known if known.reason is not None]

    @property
    def newly_left_out(self) -> list[Skipped]:
        """The files left out now that were not left out before."""
        before = {entry.source.file.label for entry in self._plan.entries if entry.fate is Fate.KEPT}
        return [skipped for skipped in self.left_out if skipped.path not in before]

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Write the next state, for `roll_forward`; `settings` are those for `tokenize.json`."""
        settled, schema = self._schemas()
        moves: dict[str, str | None] = {}
        with next_state(self._folder, moves) as ready:
            shards = [
                *self._old_shards(ready, schema, settled, moves),
                *self._new_shards(ready, schema, moves),
            ]
            for number, (_, rows) in enumerate(shards):
                rows["shard"] = number
            digest = write_index(ready, np.concatenate([rows for _, rows in shards]))
            write_report(ready, self._report())
            write_sources(ready, self.known)
            write_job(ready, {**settings, "fields": schema})
            write_manifest(ready, Manifest(self._codec, tuple(entry for entry, _ in shards), digest))

    def _known_before(self, entry: Entry) -> Known | None:
        """Return the record of a file that is not read again, None for a new one."""
        if entry.fate is Fate.NEW:
            return None
        source, known = entry.source, _known(entry)
        known = known._replace(fields=source.fields, stats=source.stats, path=source.file.label)
        caption = self._captions.get(str(known.key)) if entry.fate is Fate.RECAPTIONED else None
        if isinstance(caption, str):
            return known._replace(key=None, audio=None, reason=caption, shortfall=None)
        return known

    def _schemas(self) -> tuple[Schema | None, Schema | None]:
        """Return the schemas of the samples that stay and of those to be written; None where samples have none in common."""
        schemas = [outcome.schema for _, _, decided in self._units for outcome in decided if outcome.key]
        captions = [caption for caption in self._captions.values() if isinstance(caption, dict)]
        schemas += map(schema_of, captions)
        settled = self._schema
        if any(entry.fate is Fate.KEPT and _known(entry).key for entry in self._plan.entries):
            if settled is None:
                return None, None
        elif settled is not None and not all(fits(caption, settled) for caption in captions):
            settled = None  # every sample is rewritten, so the fields may change as well
        return settled, common_schema(filter(None, schemas), settled)

    def _old_shards(
        self, ready: Path, schema: Schema | None, settled: Schema | None, moves: dict[str, str | None]
    ) -> list[tuple[ShardEntry, IndexRows]]:
        """List the shards of the folder; those that lose a sample or get another caption are rewritten."""
        if not (self._folder / MANIFEST_NAME).exists():
            return []
        manifest = read_manifest(self._folder)
        rows = open_index(self._folder, manifest)
        edits: dict[str, Edit | None] = {
            known.key: None for known in self._plan.gone if known.key is not None
        }
        for key, caption in self._captions.items():
            edits[key] = partial(_recaption, caption, schema, settled) if isinstance(caption, dict) else None
        hashes = np.array([key_hash(key) for key in edits], dtype=np.uint64)
        # sorted, since numpy 2.0 fails to index a table by 64-bit hashes
        touched = set(rows["shard"][np.isin(rows["key_hash"], hashes, kind="sort")].tolist())
        ends = np.searchsorted(rows["shard"], range(1, len(manifest.shards)))
        shards = []
        for number, (entry, its_rows) in enumerate(zip(manifest.shards, np.split(rows, ends), strict=True)):
            shard: tuple[ShardEntry, IndexRows] | None = (entry, its_rows.copy())
            if number in touched:
                rewritten = self._write(self._folder / entry.file, ready / _next_name(entry.file), edits)
                if rewritten is not None and rewritten[0].sha256 == entry.sha256:
                    (ready / rewritten[0].file).unlink()  # its captions are what they were
                else:
                    moves[entry.file] = None
                    shard = rewritten
            if shard is not None:
                shards.append(shard)
        return shards

    def _new_shards(
        self, ready: Path, schema: Schema | None, moves: dict[str, str | None]
    ) -> list[tuple[ShardEntry, IndexRows]]:
        """List the shards of the finished units; those with duplicates or another schema are rewritten."""
        shards = []
        for unit, outcomes, decided in self._units:
            name = f"shard-{unit.number:06d}.tar"
            edits: dict[str, Edit | None] = {}
            for outcome, kept in zip(outcomes, decided, strict=True):
                if outcome.key is not None and kept.key is None:
                    edits[outcome.key] = None
                elif kept.key is not None and schema is not None and kept.schema != schema:
                    edits[kept.key] = partial(conform, schema=schema)
            if not any(kept.key is not None for kept in decided):
                continue
            if not edits:
                entry, rows = unit.contents_on_disk()
                shards.append((replace(entry, file=name), rows))
                moves[name] = unit.tar_path.name
            elif (shard := self._write(unit.tar_path, ready / name, edits)) is not None:
                shards.append(shard)
        return shards

    def _write(
        self, source: Path, target: Path, edits: Mapping[str, Edit | None]
    ) -> tuple[ShardEntry, IndexRows] | None:
        """Write a shard with edits; None if nothing is left of it."""
        with atomic_write(target) as copy:
            samples = copy_samples(source, copy, edits, self._codec)
        if not samples:
            target.unlink()
            return None
        scan = scan_written(target, 0, self._codec, samples)
        return scan.entry, scan.rows

    def _report(self) -> Report:
        present = {entry.source.file.label for entry in self._plan.entries}
        removed = {known.path: None for known in self._plan.gone if known.key is not None}
        if (self._folder / REPORT_NAME).exists():
            before = read_report(self._folder).left_out
            removed |= {skipped.path: None for skipped in before if skipped.reason.startswith(_REMOVED)}
        gone = [
            Skipped(path, f"{_REMOVED}: it is not among the audio files any more")
            for path in sorted(removed.keys() - present)
        ]
        partial_ = [
            Skipped(known.path, f"partial: {known.shortfall}")
            for known in self.known
            if known.shortfall is not None and known.key is not None
        ]
        return Report(self.left_out + gone, partial_)


def _known(entry: Entry) -> Known:
    assert entry.known is not None, "only new files are unknown"
    return entry.known


def _known_of(entry: Entry, outcome: Outcome) -> Known:
    """Return the record of a new file."""
    source = entry.source
    return Known(
        name=source.file.name,
        start=source.file.start,
        end=source.file.end,
        fields=source.fields,
        stats=source.stats,
        problem=source.file.problem,
        path=outcome.path,
        key=outcome.key,
        audio=outcome.audio,
        reason=outcome.reason,
        shortfall=outcome.shortfall,
    )


def _recaption(
    caption: dict[str, Any], schema: Schema | None, settled: Schema | None, _: dict[str, Any]
) -> dict[str, Any]:
    """Return the new metadata of a sample, without the fields that only new samples have."""
    if schema is None:
        return caption
    if settled is not None:
        schema = {name: kind for name, kind in schema.items() if name in settled or name in caption}
    return caption if schema_of(caption) == schema else conform(caption, schema)


def _next_name(name: str) -> str:
    """Return the name for a rewritten shard, which no shard had before: shard-000003.tar, shard-000003-1.tar, ..."""
    match = _SHARD_NAME.fullmatch(name)
    assert match is not None, "tokenize gave the name"
    return f"{match['number']}-{int(match['revision'] or 0) + 1}.tar"


def _without_duplicates(outcomes: list[Outcome], first_with: dict[str, str]) -> list[Outcome]:
    """Leave out samples whose audio occurred before, and add the audio of the others to `first_with`."""
    kept = []
    for outcome in outcomes:
        if outcome.audio in first_with:
            reason = f"duplicate: the same audio as {first_with[outcome.audio]}"
            outcome = outcome._replace(key=None, reason=reason)
        elif outcome.audio is not None:
            first_with[outcome.audio] = outcome.path
        kept.append(outcome)
    return kept
