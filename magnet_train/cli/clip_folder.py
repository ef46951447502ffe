"""The folder that `generate` writes: a WAV file and a line of results.jsonl for each clip that is done.

A clip counts once its line is on the disk, so whatever ends the process, the same command goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from magnet_train.errors import UserError
from magnet_train.whole_files import explain_disk_errors, sweep_partial_files, sync

RESULTS = "results.jsonl"
Record = dict[str, Any]


class ClipFolder:
    """An open folder.

    Args:
        results: results.jsonl, at the end of its last whole line.
        done: How many clips are there.
    """

    def __init__(self, results: IO[bytes], done: int) -> None:
        self._results, self.done = results, done

    def add(self, record: Record) -> None:
        """Say that the next clip, whose file is on the disk, is done.

        Raises:
            UserError: There is no room; the clips before it stay.
        """
        path = Path(self._results.name)
        end = self._results.tell()
        try:
            with explain_disk_errors(path):
                self._results.write(json.dumps(record).encode() + b"\n")
                self._results.flush()
                os.fsync(self._results.fileno())
        except UserError:
            with suppress(OSError):
                os.ftruncate(self._results.fileno(), end)
            raise
        self.done += 1


@contextmanager
def open_clip_folder(folder: Path, planned: Sequence[Record]) -> Iterator[ClipFolder]:
    """Begin a folder of clips, or go on with one that the same command began.

    Args:
        folder: Where; made if it is not there, and removed again if nothing comes of it.
        planned: What results.jsonl will say of each clip.

    Raises:
        UserError: The folder holds other clips, another command is at work in it, or it cannot be written to.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / RESULTS
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            results = path.open("ab+")
        except OSError as error:
            raise UserError(
                f"--out {folder} cannot be made ({error.strerror}); choose another folder."
            ) from error
        with results:
            try:
                fcntl.flock(
                    results, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # the kernel lets go when the process dies
            except BlockingIOError as error:
                raise UserError(
                    f"another `generate` is at work in {folder}; wait for it, or choose another --out."
                ) from error
            done = _take_up(results, path, planned)
            sweep_partial_files(folder)
            sync(folder)
            clips = ClipFolder(results, done)
            try:
                yield clips
            finally:
                if clips.done == 0:
                    path.unlink(missing_ok=True)
    finally:
        for made in new:
            with suppress(OSError):  # not there, or something is in it
                made.rmdir()


def _take_up(results: IO[bytes], path: Path, planned: Sequence[Record]) -> int:
    """Compare what is there with what is planned, drop a torn last line, and count the clips that are done."""
    results.seek(0)
    lines = results.read().split(b"\n")
    whole = lines[:-1]  # what follows the last newline was being written when the process ended
    refusal = UserError(
        f"{path.parent} holds clips of another command; choose another --out, or remove it to begin again."
    )
    if len(whole) > len(planned):
        raise refusal
    for line, record in zip(whole, planned, strict=False):
        try:
            same = json.loads(line) == json.loads(json.dumps(record))
        except ValueError:
            same = False
        if not same or not (path.parent / record["file"]).is_file():
            raise refusal
    results.truncate(sum(len(line) + 1 for line in whole))
    results.seek(0, os.SEEK_END)
    return len(whole)
