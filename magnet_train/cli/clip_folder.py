"""The folder that `generate` writes: for each finished clip a WAV file and a line of results.jsonl.

A clip counts once its line is on the disk, so the same command resumes after any kind of stop.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from magnet_train.cli.folder_lock import folder_lock
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import explain_disk_errors, sweep_partial_files, sync

RESULTS = "results.jsonl"
Record = dict[str, Any]


class ClipFolder:
    """An open folder with `done` finished clips, from `open_clip_folder`."""

    def __init__(self, path: Path, results: FileIO, done: int) -> None:
        self.path, self._results, self.done = path, results, done

    def add(self, record: Record, write: Callable[[Path], None]) -> None:
        """Write the next clip to the record's `file`, and its line once the clip is on the disk.

        `write` writes whole files or none; without room, earlier clips stay and `UserError` is raised.
        """
        file, end = self.path / record["file"], os.fstat(self._results.fileno()).st_size
        try:
            write(file)
            with explain_disk_errors(self.path / RESULTS):
                line = json.dumps(record).encode() + b"\n"
                while line:  # a nearly full disk may accept only a part
                    line = line[self._results.write(line) or 0 :]
                os.fsync(self._results.fileno())
        except BaseException:
            os.ftruncate(self._results.fileno(), end)
            file.unlink(missing_ok=True)
            raise
        self.done += 1


@contextmanager
def in_background() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Yield a function that runs work in a thread, so that clips are written while the next ones are made.

    Each call waits for the previous work and raises its error. The block ends when the last work has ended.
    """
    with ThreadPoolExecutor(1) as thread:
        running: Future[None] | None = None

        def start(work: Callable[[], None]) -> None:
            nonlocal running
            if running is not None:
                running.result()
            running = thread.submit(work)

        try:
            yield start
        finally:
            if running is not None:
                running.result()


@contextmanager
def open_clip_folder(folder: Path, planned: Sequence[Record]) -> Iterator[ClipFolder]:
    """Begin a folder of clips, or resume one that the same command began; a new folder without clips is removed.

    `planned` has the lines of results.jsonl without `seconds`. Raises `UserError` for a folder that holds other clips,
    is in use by another command, or cannot be written to.
    """
    path = folder / RESULTS
    with folder_lock(folder, "generate", "--out"):
        with explain_disk_errors(path):
            results = path.open("ab+", buffering=0)
        with results:
            clips = ClipFolder(folder, results, _resume(results, path, planned))
            sweep_partial_files(folder)
            sync(folder)
            try:
                yield clips
            finally:
                if clips.done == 0:
                    path.unlink(missing_ok=True)


def _resume(results: FileIO, path: Path, planned: Sequence[Record]) -> int:
    """Compare the finished clips with the planned ones, drop a torn last line, and return the number of finished ones."""
    results.seek(0)
    whole = results.read().split(b"\n")[
        :-1
    ]  # after the last newline: the line that a killed process was writing
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
        if not (path.parent / record["file"]).is_file():  # removed: resume from here
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
