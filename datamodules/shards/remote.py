"""Local cache of remote shard folders: tokens are small, and random access to clips needs a disk.

A copy is named after its manifest, so equal shards are kept once wherever they come from, and a cached copy cannot be
out of date.
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
from typing import IO

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from datamodules.shards.index import INDEX_NAME, max_index_bytes
from datamodules.shards.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, ShardEntry, parse_manifest
from datamodules.shards.remote_files import RemoteFolder
from datamodules.shards.tar import BLOCK
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors, partial_path, publish

# Shared locks on the copies that this process reads, kept while it lives. `flock`, since a forked worker must not end
# them and `filelock` has no shared lock.
_in_use: list[IO[bytes]] = []


def is_remote(name: str | Path) -> bool:
    """Return whether a name is a URL."""
    return "://" in str(name)


@dataclass(frozen=True)
class ShardCache:
    """Cache of remote shards on disk, shared by the processes of a machine.

    Args:
        folder: None is `magnet-train` in $XDG_CACHE_HOME, else in ~/.cache.
        gigabytes: Largest size; the least recently used copies are removed to make room, those in use never.
    """

    folder: str | None = None
    gigabytes: float = 200.0

    def local_folder(self, name: str | Path) -> Path:
        """Return a local folder as it is, or the copy of a remote one, downloaded if necessary.

        Processes that start at the same time wait for one download. An interrupted download is resumed.

        Raises:
            UserError: The folder cannot be reached or does not match its manifest, or there is no room.
        """
        if not is_remote(name):
            return Path(name).expanduser()
        source = RemoteFolder(str(name).rstrip("/"))
        manifest = source.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
        files = _files(source, manifest)
        cache = self._path()
        with explain_disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
        target = cache / hashlib.sha256(manifest).hexdigest()[:16]
        with (cache / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one download at a time on this machine; freed on close
            missing = [file for file in files if _size(target / file.file) != file.bytes]
            if missing or not (target / MANIFEST_NAME).exists():
                self._make_room(target, source.url, sum(file.bytes for file in files))
                target.mkdir(exist_ok=True)
                _download(source, target, missing)
                with atomic_write(target / MANIFEST_NAME) as copy:  # last: marks the folder as complete
                    copy.write(manifest)
            in_use = _lock_path(target).open("ab")
            fcntl.flock(in_use, fcntl.LOCK_SH)
            now = time.time_ns()
            os.utime(in_use.fileno(), ns=(now, now))  # time of last use; the kernel's own clock is coarser
            _in_use.append(in_use)
        return target

    def _path(self) -> Path:
        if self.folder is not None:
            return Path(self.folder).expanduser()
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "magnet-train"

    def _make_room(self, target: Path, url: str, needed: int) -> None:
        limit = self.gigabytes * 1e9
        remedy = f"raise data.cache.gigabytes ({self.gigabytes:g}) or name another data.cache.folder."
        if needed > limit:
            raise UserError(f"{url} takes {needed / 1e9:.3g} GB, more than the cache may hold; {remedy}")
        others = [path for path in target.parent.iterdir() if path.is_dir() and path != target]
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
        for path in sorted(others, key=_last_used):
            if sum(sizes.values()) + needed > limit and _remove_if_unused(path):
                del sizes[path]
        if sum(sizes.values()) + needed > limit:
            raise UserError(
                f"{url} takes {needed / 1e9:.3g} GB, and other runs are using the rest of the cache at "
                f"{target.parent}; {remedy}"
            )


def _files(source: RemoteFolder, content: bytes) -> list[ShardEntry]:
    """List index and shards of a manifest, after checking that their sizes are plausible."""
    where = f"{source.url}/{MANIFEST_NAME}"
    manifest = parse_manifest(content, where)
    total = sum(shard.bytes for shard in manifest.shards)
    if manifest.samples * 4 * BLOCK > total:  # a clip has two members of at least two blocks each
        raise UserError(
            f"{where} lists {manifest.samples} clips in only {total} bytes of shards; upload it again."
        )
    limit = max_index_bytes(manifest)
    size = source.size(INDEX_NAME, limit)
    if size > limit:
        raise UserError(
            f"{source.url}/{INDEX_NAME} is larger than {limit} bytes, more than {manifest.samples} clips take; "
            "upload it again."
        )
    return [ShardEntry(INDEX_NAME, size, 0, 0, manifest.index_sha256), *manifest.shards]


def _download(source: RemoteFolder, target: Path, files: list[ShardEntry]) -> None:
    units = DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress("{task.description}", BarColumn(), *units, transient=True) as bar:
        task = bar.add_task(source.url, total=sum(file.bytes for file in files))
        for file in files:
            _download_file(source, target / file.file, file, lambda count: bar.advance(task, count))


def _download_file(
    source: RemoteFolder, target: Path, file: ShardEntry, progress: Callable[[int], None]
) -> None:
    partial = partial_path(target)
    if (_size(partial) or 0) > file.bytes:
        partial.unlink()
    for _ in range(2):  # an interrupted download may have left damaged bytes: then once from the start
        with explain_disk_errors(partial), partial.open("ab") as copy:
            for data in source.pieces(file.file, copy.tell(), file.bytes):
                copy.write(data)
                progress(len(data))
        with partial.open("rb") as downloaded:
            digest = hashlib.file_digest(downloaded, "sha256").hexdigest()
        if digest == file.sha256:
            publish(partial, target)
            return
        partial.unlink()
    raise UserError(
        f"{source.url}/{file.file} is not the file that its manifest lists (sha256 differs); upload it again."
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


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
