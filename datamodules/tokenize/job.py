"""Fill a folder of shards from a list of files, by any number of processes, stopped and resumed at will.

The list is cut into units of a fixed number of files, and each unit makes its own shard. So the bytes do not
depend on who makes which, nor on interruptions. Finished shards wait in `.tokenize` until all are there.
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
from datamodules.tokenize.report import REPORT_NAME, Skipped, printable, read_report, summarize, write_report
from datamodules.tokenize.sources import SOURCES_NAME, name_changes, write_sources
from datamodules.tokenize.work_unit import Outcome, WorkUnit
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors, publish
from magnet_train.tokens import CodecInfo

WORK_NAME = ".tokenize"
_OURS = (JOB_NAME, WORK_NAME, MANIFEST_NAME, INDEX_NAME, REPORT_NAME, SOURCES_NAME)


class Finished(NamedTuple):
    """A folder of shards that is ready for use."""

    manifest: Manifest
    left_out: list[Skipped]
    partial: list[Skipped]


class NothingUsableError(UserError):
    """No file gave a sample.

    Args:
        files: How many there were.
        left_out: Why not.
    """

    def __init__(self, files: int, left_out: list[Skipped]) -> None:
        none = "the only file cannot" if files == 1 else f"none of the {files} files can"
        super().__init__(
            f"{none} be used ({summarize(left_out)}), {printable(left_out[0].path)} because: "
            f"{printable(left_out[0].reason)}; add captioned, audible files."
        )
        self.left_out = left_out


class ShardJob:
    """One run of tokenize, over however many processes and restarts it takes.

    Args:
        folder: Where the shards go; made if it is missing.
        codec: Who makes the tokens.
        settings: Everything that decides the bytes, as JSON primitives; kept in the folder, and the same in
            every process and after every restart.
        files: How many files there are.
        files_per_shard: How many of them make one shard.
        sources: These files; kept in the folder, so that a change can be named.

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
        self._sources = sources
        self.codec = codec
        self.files = files
        self.files_per_shard = files_per_shard
        self._work = folder / WORK_NAME
        self._made_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        self._begin(
            {"files": files, **settings, "files_per_shard": files_per_shard, "codec": codec.to_dict()}
        )

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
        """Put the shards in their places, without what is there twice, and write index, report and manifest.

        Whichever process finds all units finished does it; if it is stopped, the next one does it again.

        Args:
            strict: Refuse audio that is there twice.

        Returns:
            What there is now, or None while units are unfinished.

        Raises:
            NothingUsableError: No file gave a sample; nothing is left behind then.
            UserError: No room on disk, or a duplicate in strict mode.
        """
        with self._alone():
            if not self.complete:
                if not all(unit.finished for unit, _ in self.units()):
                    return None
                self._assemble(strict)
            shutil.rmtree(self._work, ignore_errors=True)  # another process may be removing it as well
        return Finished(read_manifest(self.folder), *read_report(self.folder))

    def _begin(self, settings: dict[str, Any]) -> None:
        """Claim the folder, or find that it is claimed for the same job.

        Raises:
            UserError: It is in use for something else.
        """
        job = self.folder / JOB_NAME
        if not job.exists():
            if self.folder.exists() and not (self.folder.is_dir() and _is_ours(self.folder)):
                raise UserError(f"{self.folder} is not an empty folder; give --out a new one or remove it.")
            if self.complete:
                raise UserError(
                    f"{self.folder} holds shards already; give --out a new folder, or --overwrite."
                )
            with explain_disk_errors(self.folder), self._alone():
                if not job.exists():  # another process of the job may have been first
                    if self._sources:
                        write_sources(self.folder, self._sources)
                    with atomic_write(job) as file:
                        file.write(json.dumps(settings, indent=1).encode() + b"\n")
        _require_same(self.folder, settings, self._sources)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process of the job is at the folder itself."""
        lock = FileLock(self._work / "lock")
        while not lock.is_locked:
            self._work.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(
                FileNotFoundError
            ):  # who finished the job has removed the folder just now
                lock.acquire()
        with lock:
            lock.release()  # the block holds it once more
            yield

    def _assemble(self, strict: bool) -> None:
        first_with: dict[str, str] = {}  # hash of audio -> path
        left_out: list[Skipped] = []
        partial: list[Skipped] = []
        entries: list[ShardEntry] = []
        rows: list[IndexRows] = []
        for unit, _ in self.units():
            outcomes = _without_duplicates(unit.outcomes_on_disk(), first_with)
            left_out += [Skipped(each.path, each.reason) for each in outcomes if each.reason is not None]
            partial += [
                Skipped(each.path, f"partial: {each.shortfall}")
                for each in outcomes
                if each.reason is None and each.shortfall is not None
            ]
            if strict and left_out:
                raise unusable(*left_out[0])
            placed = self._place(unit, outcomes)
            if placed is not None:
                placed[1]["shard"] = len(entries)
                entries.append(placed[0])
                rows.append(placed[1])
        if not entries:
            self._discard()
            raise NothingUsableError(self.files, left_out)
        digest = write_index(self.folder, np.concatenate(rows))
        write_report(self.folder, left_out, partial)
        write_manifest(self.folder, Manifest(self.codec, tuple(entries), digest))

    def _place(self, unit: WorkUnit, outcomes: list[Outcome]) -> tuple[ShardEntry, IndexRows] | None:
        """Give a unit's tar its name in the folder, less what `outcomes` leave out; None if that is all."""
        target = self.folder / f"shard-{unit.number:06d}.tar"
        entry, rows = unit.contents_on_disk()
        kept = sum(outcome.reason is None for outcome in outcomes)
        if not kept:
            return None
        with explain_disk_errors(target):
            if not target.exists():  # else it was put there before the last stop
                if kept < entry.samples:
                    with atomic_write(target) as copy:
                        _copy_samples(unit.tar_path, copy, outcomes)
                else:
                    publish(unit.tar_path, target)
        if kept < entry.samples:
            scan = scan_shard(target, 0, self.codec)
            entry, rows = scan.entry, scan.rows
        return replace(entry, file=target.name), rows

    def _discard(self) -> None:
        shutil.rmtree(self._work)
        (self.folder / JOB_NAME).unlink()
        (self.folder / SOURCES_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for made in self._made_folders:
                made.rmdir()


def unusable(path: str, reason: str) -> UserError:
    """Say that strict mode stops at a file."""
    return UserError(
        f"{printable(path)} cannot be used ({printable(reason)}); run again without --strict to go on without it, "
        "or mend it and start again with --overwrite."
    )


def clear_shards(folder: Path) -> None:
    """Remove what tokenize left in a folder, finished or not, and nothing else.

    Raises:
        UserError: The folder holds something else, or cannot be written to.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or not _is_ours(folder):
        raise UserError(f"{folder} does not hold shards only; give --out another folder or empty it.")
    with explain_disk_errors(folder):
        (folder / MANIFEST_NAME).unlink(missing_ok=True)  # first: from here on it is no finished folder
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_ours(folder: Path) -> bool:
    """Whether all that lies in a folder was made by tokenize; so for an empty one."""
    names = [path.name for path in folder.iterdir()]
    shards = [
        name for name in names if name.startswith(("shard-", ".")) and name.endswith((".tar", ".partial"))
    ]
    rest = set(names) - set(shards) - set(_OURS)
    return not rest and (not names or JOB_NAME in names or WORK_NAME in names or MANIFEST_NAME in names)


def _require_same(folder: Path, settings: Mapping[str, Any], sources: Sequence[AudioFile]) -> None:
    """Refuse to go on with other files or settings than the folder was begun with."""
    job = folder / JOB_NAME
    try:
        begun = json.loads(job.read_bytes())
        if not isinstance(begun, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{job} is unreadable ({error}); start again with --overwrite.") from error
    if begun.get("sources_sha256") != settings.get("sources_sha256"):
        changes = name_changes(folder, sources)
        raise UserError(
            f"{folder} was begun with other files or captions{f' ({changes})' if changes else ''}; use --overwrite to "
            "tokenize all files again, or another --out to keep it."
        )
    for name in {**begun, **settings}:
        then, now = begun.get(name), settings.get(name)
        if then != now:
            raise UserError(
                f"{folder} was begun with {_explain(name, then)}, and now there is {_explain(name, now)}; "
                "give the same options again to go on with it, another --out, or start again with --overwrite."
            )


def _explain(name: str, value: Any) -> str:
    if name == "codec" and isinstance(value, Mapping):
        return f"--codec {value.get('id')} (weights {str(value.get('sha256'))[:12]})"
    if value is None or value is True:
        return f"--{name.replace('_', '-')}" if value else f"no --{name.replace('_', '-')}"
    if name == "files":
        return f"a list of {value} files"
    return f"--{name.replace('_', '-')} {value}"


def _without_duplicates(outcomes: list[Outcome], first_with: dict[str, str]) -> list[Outcome]:
    """Turn samples whose audio was there before into reasons, and note the audio of the others."""
    answer = []
    for outcome in outcomes:
        first = None if outcome.audio is None else first_with.get(outcome.audio)
        if first is not None:
            outcome = outcome._replace(key=None, reason=f"duplicate: the same audio as {first}")
        elif outcome.audio is not None:
            first_with[outcome.audio] = outcome.path
        answer.append(outcome)
    return answer


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
