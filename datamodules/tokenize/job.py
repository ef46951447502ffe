"""Tokenize job: fill a folder of shards from a list of files, with any number of processes and restarts.

The list is split into units of a fixed number of files, and each unit makes its own shard. So the bytes do not depend
on which process makes a shard, nor on interruptions. Finished shards stay in `.tokenize` until all are complete.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from filelock import FileLock

from datamodules.shards.index import INDEX_NAME, IndexRows, write_index
from datamodules.shards.manifest import (
    JOB_NAME,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    read_manifest,
    write_manifest,
)
from datamodules.shards.scan import scan_shard
from datamodules.shards.writer import end_of_archive
from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.report import REPORT_NAME, Report, Skipped, read_report, summarize, write_report
from datamodules.tokenize.sources import SOURCES_NAME, require_same, write_sources
from datamodules.tokenize.work_unit import Outcome, WorkUnit
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors, publish
from magnet_train.storage.plain_text import printable
from magnet_train.tokens import CodecInfo

WORK_NAME = ".tokenize"
_FILES = (JOB_NAME, WORK_NAME, MANIFEST_NAME, INDEX_NAME, REPORT_NAME, SOURCES_NAME)  # besides the shards


class Finished(NamedTuple):
    """Manifest and report of a complete folder of shards."""

    manifest: Manifest
    left_out: list[Skipped]
    partial: list[Skipped]


class NothingUsableError(UserError):
    """None of `files` files gave a sample; `left_out` has all of them, with reasons."""

    def __init__(self, files: int, left_out: list[Skipped]) -> None:
        none = "the only file cannot" if files == 1 else f"none of the {files} files can"
        super().__init__(
            f"{none} be used ({summarize(left_out)}), {printable(left_out[0].path)} because: "
            f"{printable(left_out[0].reason)}; add captioned, audible files."
        )
        self.left_out = left_out


class ShardJob:
    """One tokenize job, over all its processes and restarts.

    Args:
        folder: Where the shards go; made if it is missing.
        codec: Codec that makes the tokens.
        settings: Everything else that decides the bytes, as JSON primitives; stored in the folder, and the same in
            every process and after every restart.
        files: Number of files.
        files_per_shard: Number of files that make one shard.
        sources: The files; stored in the folder, so that changes can be named.

    Raises:
        UserError: The folder holds something else, or was begun with other settings.
    """

    def __init__(
        self,
        folder: Path,
        codec: CodecInfo,
        settings: Mapping[str, Any],
        files: int,
        files_per_shard: int,
        sources: Sequence[AudioFile] = (),
    ) -> None:
        self.folder = folder
        self.codec = codec
        self.files = files
        self.files_per_shard = files_per_shard
        self._work = folder / WORK_NAME
        self._made_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        settings = {"files": files, **settings, "files_per_shard": files_per_shard, "codec": codec.to_dict()}
        if not (folder / JOB_NAME).exists():
            self._begin(settings, sources)
        require_same(folder, settings, sources)

    def _begin(self, settings: Mapping[str, Any], sources: Sequence[AudioFile]) -> None:
        """Write the settings into an empty folder, unless another process of the job has done so."""
        if self.folder.exists() and not (self.folder.is_dir() and _holds_only_shards(self.folder)):
            raise UserError(f"{self.folder} is not an empty folder; give --out a new one or remove it.")
        if self.complete:
            raise UserError(f"{self.folder} holds shards already; give --out a new folder, or --overwrite.")
        with explain_disk_errors(self.folder), self._locked():
            if not (self.folder / JOB_NAME).exists():
                if sources:
                    write_sources(self.folder, sources)
                with atomic_write(self.folder / JOB_NAME) as file:
                    file.write(json.dumps(settings, indent=1).encode() + b"\n")

    @property
    def complete(self) -> bool:
        """Whether the folder is ready for use."""
        return (self.folder / MANIFEST_NAME).exists()

    def units(self, rank: int = 0, ranks: int = 1) -> Iterator[tuple[WorkUnit, range]]:
        """Yield one process's share of the units, each with the places of its files in the list."""
        for number, start in enumerate(range(0, self.files, self.files_per_shard)):
            if number % ranks == rank:
                places = range(start, min(start + self.files_per_shard, self.files))
                yield WorkUnit(self._work, number, self.codec), places

    def finish(self, *, strict: bool = False) -> Finished | None:
        """Move the shards into the folder, without duplicates, and write index, report and manifest.

        The process that finds all units finished does this; if it is killed, the next one repeats it.

        Returns:
            Manifest and report, or None while units are unfinished.

        Raises:
            NothingUsableError: No file gave a sample; everything is removed.
            UserError: No room on disk, or duplicate audio if `strict`.
        """
        with self._locked():
            if not self.complete:
                if not all(unit.finished for unit, _ in self.units()):
                    return None
                self._assemble(strict)
            shutil.rmtree(self._work, ignore_errors=True)  # another process may be removing it as well
        return Finished(read_manifest(self.folder), *read_report(self.folder))

    def _assemble(self, strict: bool) -> None:
        first_with: dict[str, str] = {}  # hash of audio -> path
        report = Report([], [])
        entries: list[ShardEntry] = []
        rows: list[IndexRows] = []
        for unit, _ in self.units():
            outcomes = _without_duplicates(unit.outcomes_on_disk(), first_with)
            for outcome in outcomes:
                if outcome.reason is not None:
                    report.left_out.append(Skipped(outcome.path, outcome.reason))
                elif outcome.shortfall is not None:
                    report.partial.append(Skipped(outcome.path, f"partial: {outcome.shortfall}"))
            if strict and report.left_out:
                raise unusable(*report.left_out[0])
            if any(outcome.reason is None for outcome in outcomes):
                entry, unit_rows = self._publish(unit, outcomes)
                unit_rows["shard"] = len(entries)
                entries.append(entry)
                rows.append(unit_rows)
        if not entries:
            self._discard()
            raise NothingUsableError(self.files, report.left_out)
        digest = write_index(self.folder, np.concatenate(rows))
        write_report(self.folder, report)
        write_manifest(self.folder, Manifest(self.codec, tuple(entries), digest))

    def _publish(self, unit: WorkUnit, outcomes: list[Outcome]) -> tuple[ShardEntry, IndexRows]:
        """Put a unit's tar into the folder, with only the samples that `outcomes` keep."""
        target = self.folder / f"shard-{unit.number:06d}.tar"
        entry, rows = unit.contents_on_disk()
        is_whole = sum(outcome.reason is None for outcome in outcomes) == entry.samples
        with explain_disk_errors(target):
            if target.exists():  # an interrupted `finish` put it there
                pass
            elif is_whole:
                publish(unit.tar_path, target)
            else:
                with atomic_write(target) as copy:
                    _copy_samples(unit.tar_path, copy, outcomes)
        if not is_whole:
            entry, rows, _ = scan_shard(target, 0, self.codec)
        return replace(entry, file=target.name), rows

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the folder as a whole."""
        lock = FileLock(self._work / "lock")
        while not lock.is_locked:
            self._work.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process has just removed the work folder
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _discard(self) -> None:
        shutil.rmtree(self._work)
        (self.folder / JOB_NAME).unlink()
        (self.folder / SOURCES_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for made in self._made_folders:
                made.rmdir()


def unusable(path: str, reason: str) -> UserError:
    """Return the error with which strict mode stops at a file."""
    return UserError(
        f"{printable(path)} cannot be used ({printable(reason)}); run again without --strict to go on without it, "
        "or correct it and start again with --overwrite."
    )


def clear_shards(folder: Path) -> None:
    """Remove the files of tokenize, finished or not, from a folder that holds nothing else.

    Raises:
        UserError: The folder holds something else, or cannot be written to.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or not _holds_only_shards(folder):
        raise UserError(f"{folder} does not hold shards only; give --out another folder or empty it.")
    with explain_disk_errors(folder):
        (folder / MANIFEST_NAME).unlink(missing_ok=True)  # first: without it the folder is unfinished
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _holds_only_shards(folder: Path) -> bool:
    """Return whether tokenize made everything in a folder; True for an empty one."""
    names = {path.name for path in folder.iterdir()}
    others = names.difference(_FILES)
    if not all(name.startswith(("shard-", ".")) and name.endswith((".tar", ".partial")) for name in others):
        return False
    return not names or not names.isdisjoint((JOB_NAME, WORK_NAME, MANIFEST_NAME))


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


def _copy_samples(source: Path, copy: IO[bytes], outcomes: list[Outcome]) -> None:
    """Write a tar of the samples of `source` that `outcomes` keep."""
    size = start = 0
    with source.open("rb") as tar:
        for outcome in outcomes:
            if outcome.reason is None:
                tar.seek(start)
                size += copy.write(tar.read(outcome.end - start))
            start = outcome.end
        copy.write(end_of_archive(size))
