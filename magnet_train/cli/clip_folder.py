"""The folder that `generate` writes: for each finished clip a WAV file and a line of results.jsonl.

A clip counts once its line is on the disk, so the same command resumes after any kind of stop.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import explain_disk_errors, sweep_partial_files, sync

RESULTS = "results.jsonl"
Record = dict[str, Any]


class ClipFolder:
    """An open folder with `done` finished clips, from `open_clip_folder`."""

    def __init__(self, path: Path, results: FileIO, done: int) -> None:
        self.path, self._results, self.done = path, results, done

    def add(self, record: Record, write: Callable[[Path], None]) -> None:
        """Write the next clip, and its line once the file is on the disk.

        Args:
            record: The line; `file` names the file.
            write: Writes the file, whole or not at all.

        Raises:
            UserError: No room; the earlier clips stay.
        """
        file, end = self.path / record["file"], os.fstat(self._results.fileno()).st_size
        try:
            write(file)
            with explain_disk_errors(self.path / RESULTS):
                line = json.dumps(record).encode() + b"\n"
                while line:  # a disk that is nearly full takes a part
                    line = line[self._results.write(line) or 0 :]
                os.fsync(self._results.fileno())
        except BaseException:  # Ctrl-C too
            os.ftruncate(self._results.fileno(), end)
            file.unlink(missing_ok=True)
            raise
        self.done += 1


@contextmanager
def open_clip_folder(folder: Path, planned: Sequence[Record]) -> Iterator[ClipFolder]:
    """Begin a folder of clips, or resume one that the same command began.

    Args:
        folder: Made if it does not exist, and removed again if no clip is made.
        planned: The lines of results.jsonl, without `seconds`.

    Raises:
        UserError: The folder holds other clips, another command is writing to it, or it cannot be written to.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / RESULTS
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            results = path.open("ab+", buffering=0)
        except OSError as error:
            raise UserError(
                f"--out {folder} cannot be made ({error.strerror}); choose another folder."
            ) from error
        with results:
            _lock(results, folder)
            clips = ClipFolder(folder, results, _resume(results, path, planned))
            sweep_partial_files(folder)
            sync(folder)
            try:
                yield clips
            finally:
                if clips.done == 0:
                    path.unlink(missing_ok=True)
    finally:
        for made in new:
            with suppress(OSError):  # it does not exist, or is not empty
                made.rmdir()


def _lock(results: FileIO, folder: Path) -> None:
    """Keep other commands out; the kernel releases the lock when this process dies."""
    try:
        fcntl.flock(results, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = os.fstat(results.fileno()).st_nlink > 0  # else the one before has just removed it
    except BlockingIOError:
        alone = False
    if not alone:
        raise UserError(f"another `generate` is writing to {folder}; wait for it, or choose another --out.")


def _resume(results: FileIO, path: Path, planned: Sequence[Record]) -> int:
    """Compare the finished clips with the planned ones, drop a torn last line, and return the number of finished ones."""
    results.seek(0)
    lines = results.read().split(b"\n")
    whole = lines[:-1]  # the rest, after the last newline, was being written when the process ended
    refusal = UserError(
        f"{path.parent} holds clips of another command (or of another model or recording under the same name); choose "
        "another --out, or remove it to begin again."
    )
    if len(whole) > len(planned):
        raise refusal
    done = 0
    for line, record in zip(whole, planned, strict=False):
        if _without_length(line) != json.loads(json.dumps(record)):
            raise refusal
        if not (path.parent / record["file"]).is_file():  # somebody removed it: resume from here
            break
        done += 1
    results.truncate(sum(len(line) + 1 for line in whole[:done]))
    return done


def _without_length(line: bytes) -> Any:
    """Parse a line without the length, which is known only once a clip is made; None if it is damaged."""
    try:
        return {name: value for name, value in json.loads(line).items() if name != "seconds"}
    except (ValueError, AttributeError):
        return None
