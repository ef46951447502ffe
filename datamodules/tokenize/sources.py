"""What tokenize was begun with: each file with its fields, sizes and times, so that a change can be named.

It is kept in the folder of shards as `sources.jsonl.gz`, a line for each file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.report import printable
from magnet_train.storage.atomic_io import atomic_write

SOURCES_NAME = "sources.jsonl.gz"
_SHOWN = 3  # files of each kind of change


def fingerprint(files: Sequence[AudioFile]) -> str:
    """Hash everything that a list of files says, and size and time of each file and of its captions.

    Two processes with the same fingerprint see the same source, as far as that shows without reading it all.
    """
    digest = hashlib.sha256()
    for line in _lines(files):
        digest.update(line)
    return digest.hexdigest()


def write_sources(folder: Path, files: Sequence[AudioFile]) -> None:
    """Keep what there is, for `name_changes`.

    Raises:
        UserError: No room or no permission.
    """
    with (
        atomic_write(folder / SOURCES_NAME) as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
    ):
        for line in _lines(files):
            packed.write(line)


def name_changes(folder: Path, files: Sequence[AudioFile]) -> str | None:
    """Say which files were added, removed or changed since `write_sources`: "added b.wav; changed a.wav (its caption)".

    Returns:
        None if that is not known.
    """
    try:
        with gzip.open(folder / SOURCES_NAME, "rb") as lines:
            before = _by_label(lines)
    except (OSError, EOFError, ValueError, TypeError):
        return None
    now = _by_label(_lines(files))
    both = [label for label in now if label in before and now[label] != before[label]]
    changes = {
        "added": [label for label in now if label not in before],
        "removed": [label for label in before if label not in now],
        "changed": [f"{label} ({_what_changed(before[label], now[label])})" for label in both],
    }
    return (
        "; ".join(f"{kind} {_few(names)}" for kind, names in changes.items() if names) or "in another order"
    )


def _lines(files: Sequence[AudioFile]) -> Iterator[bytes]:
    for file in files:
        beside = (_beside(file.path, ".json"), _beside(file.path, ".txt"))
        stats = [_stat(path) for path in (file.path, *beside)]
        record = (file.name, file.start, file.end, dict(file.fields), stats)
        yield json.dumps(record).encode() + b"\n"


def _by_label(lines: Iterable[bytes]) -> dict[str, list[Any]]:
    records = [json.loads(line) for line in lines]
    return {name + ("" if start is None else f" from {start:g} s"): rest for name, start, *rest in records}


def _what_changed(before: list[Any], now: list[Any]) -> str:
    """Name what differs of end, fields, and size and time of the audio, its `.json` and its `.txt`."""
    if before[-1][0] != now[-1][0]:
        return "the audio"
    return "its caption" if before[-1] != now[-1] else "its line in the list"


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(printable, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _beside(path: Path, suffix: str) -> str:
    return os.path.splitext(path)[0] + suffix


def _stat(path: str | Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # absent, or not a possible path
        return None
    return found.st_size, found.st_mtime_ns
