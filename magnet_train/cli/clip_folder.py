"""The folder that `generate` writes: a WAV file and a line of results.jsonl for each clip that is done.

A clip counts once its line is on the disk, so whatever ends the process, the same command goes on from there.
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
    """An open folder.

    Args:
        folder: Where the clips are.
        results: results.jsonl, unbuffered, for appending.
        done: How many clips are there.
    """

    def __init__(self, folder: Path, results: FileIO, done: int) -> None:
        self._folder, self._results, self.done = folder, results, done

    def add(self, record: Record, write: Callable[[Path], None]) -> None:
        """Write the next clip, and once its file is on the disk its line.

        Args:
            record: Its line; `file` names its file.
            write: Writes the file, whole or not at all.

        Raises:
            UserError: There is no room; the clips before it stay.
        """
        file, end = self._folder / record["file"], os.fstat(self._results.fileno()).st_size
        try:
            write(file)
            with explain_disk_errors(self._folder / RESULTS):
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
    """Begin a folder of clips, or go on with one that the same command began.

    Args:
        folder: Where; made if it is not there, and removed again if nothing comes of it.
        planned: What results.jsonl will say of each clip, but for its `seconds`.

    Raises:
        UserError: The folder holds other clips, another command is at work in it, or it cannot be written to.
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
            clips = ClipFolder(folder, results, _take_up(results, path, planned))
            sweep_partial_files(folder)
            sync(folder)
            try:
                yield clips
            finally:
                if clips.done == 0:
                    path.unlink(missing_ok=True)
    finally:
        for made in new:
            with suppress(OSError):  # not there, or something is in it
                made.rmdir()


def _lock(results: FileIO, folder: Path) -> None:
    """Keep other commands out; the kernel lets go when this process dies."""
    try:
        fcntl.flock(results, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = os.fstat(results.fileno()).st_nlink > 0  # else the one before has just removed it
    except BlockingIOError:
        alone = False
    if not alone:
        raise UserError(f"another `generate` is at work in {folder}; wait for it, or choose another --out.")


def _take_up(results: FileIO, path: Path, planned: Sequence[Record]) -> int:
    """Compare what is there with what is planned, drop a torn last line, and count the clips that are done."""
    results.seek(0)
    lines = results.read().split(b"\n")
    whole = lines[:-1]  # what follows the last newline was being written when the process ended
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
        if not (path.parent / record["file"]).is_file():  # removed by somebody: goes on from here
            break
        done += 1
    results.truncate(sum(len(line) + 1 for line in whole[:done]))
    return done


def _without_length(line: bytes) -> Any:
    """Read a line; what a clip's length came to is known only once it is made."""
    try:
        record = json.loads(line)
        return {name: value for name, value in record.items() if name != "seconds"}
    except (ValueError, AttributeError):
        return None
