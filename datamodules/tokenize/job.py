"""Tokenize job: fill a folder of shards from a list of files, with any number of processes and restarts.

New files are split into units of a fixed size, and each unit makes its own shard. So the bytes depend neither on the
process that makes a shard nor on interruptions. Finished shards stay in `.tokenize` until all are complete.
Run again on a changed list of files, the job adds shards for new ones and rewrites those whose samples changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from datamodules.shards.index import INDEX_NAME
from datamodules.shards.manifest import JOB_NAME, MANIFEST_NAME, WORK_NAME, Manifest, read_manifest
from datamodules.tokenize.assembly import Assembly, Caption
from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.commit import roll_forward
from datamodules.tokenize.plan import Plan, make_plan
from datamodules.tokenize.report import REPORT_NAME, Skipped, read_report, summarize
from datamodules.tokenize.sources import (
    SOURCES_NAME,
    Source,
    fingerprint,
    read_job,
    read_sources,
    require_same,
    write_job,
)
from datamodules.tokenize.work_unit import WorkUnit
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import explain_disk_errors
from magnet_train.storage.plain_text import printable
from magnet_train.tokens import CodecInfo

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
        settings: Everything else that the bytes depend on, as JSON primitives; stored in the folder, and the same in
            every process and after every restart.
        sources: The files.
        files_per_shard: Number of files that make one shard.

    Raises:
        UserError: The folder holds something else, was begun with other settings, or cannot grow.
    """

    def __init__(
        self,
        folder: Path,
        codec: CodecInfo,
        settings: Mapping[str, Any],
        sources: Sequence[Source],
        files_per_shard: int,
    ) -> None:
        self.folder = folder
        self.codec = codec
        self.sources = sources
        self.files_per_shard = files_per_shard
        self._work = folder / WORK_NAME
        self._made_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        self._settings = {
            "files": len(sources),
            "sources_sha256": fingerprint(sources),
            **settings,
            "files_per_shard": files_per_shard,
            "codec": codec.to_dict(),
        }
        if not (folder / JOB_NAME).exists():
            self._begin()
        require_same(folder, read_job(folder), self._settings)
        if self._work.exists():
            with self._locked():
                roll_forward(folder)
        self._look()

    def _begin(self) -> None:
        """Write the settings into an empty folder, unless another process of the job has done so."""
        if self.folder.exists() and not (self.folder.is_dir() and _holds_only_shards(self.folder)):
            raise UserError(f"{self.folder} is not an empty folder; give --out a new one or remove it.")
        if self.is_usable:
            raise UserError(f"{self.folder} holds shards already; give --out a new folder, or --overwrite.")
        with explain_disk_errors(self.folder), self._locked():
            if not (self.folder / JOB_NAME).exists():
                write_job(self.folder, self._settings)

    def _look(self) -> None:
        """Compare the folder with the files."""
        self._begun = read_job(self.folder)
        try:
            self.plan = make_plan(read_sources(self.folder) if self.is_usable else [], self.sources)
        except UserError:
            if self._begun.get("sources_sha256") != self._settings["sources_sha256"]:
                raise
            self.plan = Plan([], [])  # finished by a version that did not record its files

    @property
    def is_usable(self) -> bool:
        """Whether the folder holds shards that can be used; they may be of an earlier list of files."""
        return (self.folder / MANIFEST_NAME).exists()

    @property
    def complete(self) -> bool:
        """Whether the folder holds exactly the present files."""
        return self.is_usable and self.plan.is_empty

    def units(self, rank: int = 0, ranks: int = 1) -> Iterator[tuple[WorkUnit, list[AudioFile]]]:
        """Yield one process's share of the units, each with its files."""
        first = self._begun.get("next_shard", 0)
        new = self.plan.new
        for number, start in enumerate(range(0, len(new), self.files_per_shard)):
            if number % ranks == rank:
                sources = new[start : start + self.files_per_shard]
                lines = b"".join(source.line + source.file.key.encode() for source in sources)
                files = hashlib.sha256(lines).hexdigest()[:12]
                unit = WorkUnit(self._work, first + number, self.codec, files)
                yield unit, [source.file for source in sources]

    def finish(self, caption: Caption, *, strict: bool = False) -> Finished | None:
        """Move the shards into the folder, without duplicates, and write index, report and manifest.

        The process that finds all units finished does this; if it is killed, the next one repeats it.

        Args:
            caption: Reads the metadata of a file whose caption changed.
            strict: Raise for the first file that is left out.

        Returns:
            Manifest and report, or None while units are unfinished.

        Raises:
            NothingUsableError: No file gave a sample; everything that the job made is removed.
            UserError: No room on disk, or duplicate audio if `strict`.
        """
        with self._locked():
            roll_forward(self.folder)
            if (self.folder / JOB_NAME).exists() and read_job(self.folder) != self._begun:
                self._look()  # another process has finished the job
            if not self.complete:
                units = [unit for unit, _ in self.units()]
                if not all(unit.finished for unit in units):
                    return None
                self._assemble(units, caption, strict)
                roll_forward(self.folder)
            shutil.rmtree(self._work, ignore_errors=True)  # another process may be removing it as well
        return Finished(read_manifest(self.folder), *read_report(self.folder))

    def _assemble(self, units: list[WorkUnit], caption: Caption, strict: bool) -> None:
        assembly = Assembly(self.folder, self.codec, self.plan, units, self._begun.get("fields"), caption)
        if strict and assembly.newly_left_out:
            raise unusable(*assembly.newly_left_out[0])
        if not assembly.has_samples:
            self._discard()
            raise NothingUsableError(len(self.sources), assembly.left_out)
        next_shard = max([self._begun.get("next_shard", 0), *(unit.number + 1 for unit in units)])
        assembly.prepare({**self._settings, "next_shard": next_shard})

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
        if self.is_usable:
            return
        (self.folder / JOB_NAME).unlink()
        with contextlib.suppress(OSError):
            for made in self._made_folders:
                made.rmdir()


def unusable(path: str, reason: str) -> UserError:
    """Return the error with which strict mode stops at a file."""
    return UserError(
        f"{printable(path)} cannot be used ({printable(reason)}); run again without --strict to leave it out, "
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
