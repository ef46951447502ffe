"""One unfinished shard: a tar that grows clip by clip, and a journal of the outcome of each file.

A killed process leaves both; the next one continues after the last outcome on which they agree.
Shapes: tokens integers [K, T].
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from datamodules.shards.index import IndexRows
from datamodules.shards.manifest import ShardEntry
from datamodules.shards.writer import end_of_archive, sample_bytes, scan_written
from datamodules.tokenize.schema import Schema, schema_of
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors
from magnet_train.tokens import CodecInfo


class Outcome(NamedTuple):
    """Outcome of one file: a sample, or the reason for which it was left out."""

    path: str
    key: str | None  # of its sample, None if it was left out
    audio: str | None  # hash of its audio, None if it was left out
    reason: str | None  # None if it gave a sample
    end: int  # size of the tar after it (bytes)
    crc32: int  # of the bytes that it added to the tar
    shortfall: str | None = None  # which part of it could not be read, though it gave a sample
    schema: Schema | None = None  # of its metadata, None if it was left out


class WorkUnit:
    """Fill one shard of a job, continuing where an earlier process stopped; `with` opens its files in `folder`.

    Args:
        folder: Folder of its files.
        number: Number of the shard.
        codec: Codec that makes the tokens.
        files: Hash of its list of files; a changed list begins another unit.

    Raises:
        UserError: Another process is writing this shard, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, number: int, codec: CodecInfo, files: str) -> None:
        self.number = number
        self._codec = codec
        self.tar_path = folder / f"{number:06d}-{files}.tar"
        self._journal_path = self.tar_path.with_suffix(".jsonl")
        self._rows_path = self.tar_path.with_suffix(".npy")
        self._entry_path = self.tar_path.with_suffix(".json")
        self._lock = FileLock(self.tar_path.with_suffix(".lock"))
        self.outcomes: list[Outcome] = []

    @property
    def finished(self) -> bool:
        """Whether the shard is complete."""
        return self._entry_path.exists()

    def __enter__(self) -> Self:
        with explain_disk_errors(self.tar_path):
            self.tar_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another process is writing {self.tar_path}; wait for it to end or stop it."
            ) from error
        with explain_disk_errors(self.tar_path):
            self._tar = self.tar_path.open("ab+")
            self._journal = self._journal_path.open("ab+")
            self._recover()
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._tar, self._journal):
            with contextlib.suppress(OSError):  # a full disk fails again when buffers are flushed
                file.close()
        self._lock.release()

    def add(
        self,
        path: str,
        key: str,
        tokens: npt.NDArray[np.integer[Any]],
        metadata: Mapping[str, Any],
        audio: str,
        shortfall: str | None = None,
    ) -> None:
        """Append the sample of the next file; see `Outcome` and `sample_bytes`.

        Raises:
            ValueError: What `sample_bytes` refuses.
            UserError: No room on disk.
        """
        data = sample_bytes(key, tokens, metadata, self._codec)
        with explain_disk_errors(self.tar_path):
            self._tar.write(data)
            self._tar.flush()
        end, schema = self._end + len(data), schema_of(metadata)
        self._note(Outcome(path, key, audio, None, end, zlib.crc32(data), shortfall, schema))

    def leave_out(self, path: str, reason: str) -> None:
        """Record that the next file gives no sample; a UserError says why the disk refuses."""
        self._note(Outcome(path, None, None, reason, self._end, 0))

    def finish(self) -> None:
        """Close the tar, read it back and mark the shard as finished; a UserError says what failed on the disk."""
        with explain_disk_errors(self.tar_path):
            self._tar.write(end_of_archive(self._end))
            for open_file in (self._tar, self._journal):
                open_file.flush()
                os.fsync(open_file.fileno())
        samples = sum(outcome.reason is None for outcome in self.outcomes)
        scan = scan_written(self.tar_path, self.number, self._codec, samples)
        rows = io.BytesIO()
        np.save(rows, scan.rows, allow_pickle=False)
        with atomic_write(self._rows_path) as file:
            file.write(rows.getvalue())
        with atomic_write(self._entry_path) as file:  # last: marks the shard as finished
            file.write(json.dumps(asdict(scan.entry)).encode())

    def contents_on_disk(self) -> tuple[ShardEntry, IndexRows]:
        """Return manifest entry and index rows of a finished unit."""
        rows: IndexRows = np.load(self._rows_path, allow_pickle=False)
        return ShardEntry(**json.loads(self._entry_path.read_bytes())), rows

    def outcomes_on_disk(self) -> list[Outcome]:
        """Return the outcome of each file of a finished unit."""
        with self._journal_path.open("rb") as lines:
            return [Outcome(*json.loads(line)) for line in lines]

    @property
    def _end(self) -> int:
        return self.outcomes[-1].end if self.outcomes else 0

    def _note(self, outcome: Outcome) -> None:
        """Append an outcome to the journal, after its bytes are in the tar."""
        with explain_disk_errors(self._journal_path):
            self._journal.write(json.dumps(outcome).encode() + b"\n")
            self._journal.flush()
        self.outcomes.append(outcome)

    def _recover(self) -> None:
        """Load the journal's outcomes whose bytes are in the tar, and truncate both after them."""
        self._tar.seek(0)
        self._journal.seek(0)
        good = 0  # bytes of the journal
        for line in self._journal:
            try:
                outcome = Outcome(*json.loads(line))
            except (ValueError, TypeError):
                break
            if not line.endswith(b"\n") or outcome.end < self._end:
                break
            data = self._tar.read(outcome.end - self._end)
            if len(data) != outcome.end - self._end or zlib.crc32(data) != outcome.crc32:
                break  # after a power failure the journal may be ahead of the tar
            self.outcomes.append(outcome)
            good += len(line)
        os.ftruncate(self._tar.fileno(), self._end)
        os.ftruncate(self._journal.fileno(), good)
