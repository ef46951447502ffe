"""Copy remote folders of shards to this machine: tokens are small, and reading single clips needs a disk.

A copy is named after its manifest, so one set of shards is kept once wherever it came from, and what the cache
holds can never be out of date.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from datamodules.shards.index import INDEX_NAME, most_index_bytes
from datamodules.shards.manifest import MANIFEST_NAME, MOST_MANIFEST_BYTES, parse_manifest
from datamodules.shards.remote_files import RemoteFolder
from datamodules.shards.tar import BLOCK
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors, partial_path, publish

_in_use: list[IO[bytes]] = []  # locks on the copies that this process reads, kept while it lives


def is_remote(name: str | Path) -> bool:
    """Tell a URL from a path."""
    return "://" in str(name)


@dataclass(frozen=True)
class ShardCache:
    """Where copies of remote shards are kept, shared by the processes of a machine.

    Args:
        folder: None is `magnet-train` in $XDG_CACHE_HOME, else in ~/.cache.
        gigabytes: Most that it may hold; the copies used longest ago make room, those in use never.
    """

    folder: str | None = None
    gigabytes: float = 200.0

    def local_folder(self, name: str | Path) -> Path:
        """Return a local folder as it is, and the copy of a remote one, downloaded if it is not there yet.

        Processes that ask at once wait for one download. One that was broken off goes on where it was.

        Raises:
            UserError: The folder cannot be reached or is not what its manifest says, or there is no room.
        """
        if not is_remote(name):
            return Path(name).expanduser()
        source = RemoteFolder(str(name).rstrip("/"))
        manifest = source.read(MANIFEST_NAME, MOST_MANIFEST_BYTES)
        files = _files(source, manifest)
        cache = self._path()
        with explain_disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
        target = cache / hashlib.sha256(manifest).hexdigest()[:16]
        with (cache / ".lock").open("ab") as lock:
            fcntl.flock(
                lock, fcntl.LOCK_EX
            )  # one download at a time on this machine; freed when it is closed
            missing = [file for file in files if not _has(target / file.name, file.bytes)]
            if missing or not (target / MANIFEST_NAME).exists():
                self._make_room(target, sum(file.bytes for file in files))
                target.mkdir(exist_ok=True)
                _download(source, target, missing)
                with atomic_write(target / MANIFEST_NAME) as copy:  # last: a folder that has one is complete
                    copy.write(manifest)
            used = _lock_path(target).open("ab")
            fcntl.flock(used, fcntl.LOCK_SH)
            now = time.time_ns()
            os.utime(used.fileno(), ns=(now, now))  # when it was last used; the kernel's own clock is coarser
            _in_use.append(used)
        return target

    def _path(self) -> Path:
        if self.folder is not None:
            return Path(self.folder).expanduser()
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "magnet-train"

    def _make_room(self, target: Path, needed: int) -> None:
        limit = self.gigabytes * 1e9
        remedy = f"raise data.cache.gigabytes ({self.gigabytes:g}) or name another data.cache.folder."
        if needed > limit:
            raise UserError(f"the shards take {needed / 1e9:.3g} GB, more than the cache may hold; {remedy}")
        others = [path for path in target.parent.iterdir() if path.is_dir() and path != target]
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
        for path in sorted(others, key=_last_used):
            if sum(sizes.values()) + needed <= limit:
                return
            if _remove_if_unused(path):
                del sizes[path]
        if sum(sizes.values()) + needed > limit:
            raise UserError(
                f"the shards take {needed / 1e9:.3g} GB and other runs are using the rest of the cache at "
                f"{target.parent}; {remedy}"
            )


class _File(NamedTuple):
    name: str
    bytes: int
    sha256: str


def _files(source: RemoteFolder, manifest: bytes) -> list[_File]:
    record = parse_manifest(manifest, f"{source.url}/{MANIFEST_NAME}")
    total = sum(shard.bytes for shard in record.shards)
    if record.samples * 4 * BLOCK > total:  # a clip is two members of at least two blocks each
        raise UserError(
            f"{source.url}/{MANIFEST_NAME} lists {record.samples} clips in {total} bytes of shards, which do not "
            "hold so many; upload it again."
        )
    most = most_index_bytes(record)
    size = source.size(INDEX_NAME, most)
    if size > most:
        raise UserError(
            f"{source.url}/{INDEX_NAME} is larger than {most} bytes, more than {record.samples} clips take; "
            "upload it again."
        )
    index = _File(INDEX_NAME, size, record.index_sha256)
    return [index, *(_File(shard.file, shard.bytes, shard.sha256) for shard in record.shards)]


def _download(source: RemoteFolder, target: Path, files: list[_File]) -> None:
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(source.url, total=sum(file.bytes for file in files))
        for file in files:
            _fetch(source, target / file.name, file, lambda came: bar.advance(task, came))


def _fetch(source: RemoteFolder, target: Path, file: _File, progress: Callable[[int], None]) -> None:
    partial = partial_path(target)
    if partial.exists() and partial.stat().st_size > file.bytes:
        partial.unlink()
    for _ in range(2):  # what was left by a broken download may itself be damaged: then once from the start
        source.append(file.name, partial, file.bytes, progress)
        with partial.open("rb") as came:
            digest = hashlib.file_digest(came, "sha256").hexdigest()
        if digest == file.sha256:
            publish(partial, target)
            return
        partial.unlink()
    raise UserError(
        f"{source.url}/{file.name} is not the file that its manifest lists (sha256 differs); upload it again."
    )


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _lock_path(copy: Path) -> Path:
    return copy.with_suffix(".lock")


def _last_used(copy: Path) -> float:
    lock = _lock_path(copy)
    return lock.stat().st_mtime if lock.exists() else 0.0


def _remove_if_unused(copy: Path) -> bool:
    with _lock_path(copy).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(copy)
        _lock_path(copy).unlink()
        return True
