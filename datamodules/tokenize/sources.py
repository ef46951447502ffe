"""Settings and source files that a tokenize job was begun with, so that a changed job is refused with the changes.

The folder of shards keeps the settings as `tokenize.json`, and the files with size and time as `sources.jsonl.gz`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.shards.manifest import JOB_NAME
from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.captions import sidecar
from datamodules.tokenize.description import description_path
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write
from magnet_train.storage.plain_text import printable

SOURCES_NAME = "sources.jsonl.gz"
_EXAMPLES = 3  # files named for each kind of change


def fingerprint(files: Sequence[AudioFile]) -> str:
    """Hash the fields of all files, and size and time of each file and of its captions; contents are not read."""
    digest = hashlib.sha256()
    for line in _lines(files):
        digest.update(line)
    return digest.hexdigest()


def write_sources(folder: Path, files: Sequence[AudioFile]) -> None:
    """Write `sources.jsonl.gz`; a UserError says why the disk refuses."""
    with (
        atomic_write(folder / SOURCES_NAME) as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
    ):
        packed.writelines(_lines(files))


def require_same(folder: Path, settings: Mapping[str, Any], files: Sequence[AudioFile]) -> None:
    """Require a folder to have been begun with these settings and files.

    Raises:
        UserError: They differ; names the changes.
    """
    job = folder / JOB_NAME
    try:
        begun = json.loads(job.read_bytes())
        if not isinstance(begun, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{job} is unreadable ({error}); start again with --overwrite.") from error
    if begun.get("sources_sha256") != settings.get("sources_sha256"):
        changes = _changes(folder, files)
        raise UserError(
            f"{folder} was begun with other files or captions{f' ({changes})' if changes else ''}; use --overwrite to "
            "tokenize all files again, or another --out to keep it."
        )
    for name in {**begun, **settings}:
        before, now = begun.get(name), settings.get(name)
        if before != now:
            raise UserError(
                f"{folder} was begun with {_option(name, before)}, and now there is {_option(name, now)}; "
                "give the same options again to go on with it, another --out, or start again with --overwrite."
            )


def _changes(folder: Path, files: Sequence[AudioFile]) -> str | None:
    """Name what changed since `write_sources`: "added b.wav; changed a.wav (its caption)"; None if that is unknown."""
    try:
        with gzip.open(folder / SOURCES_NAME, "rb") as lines:
            before = _by_label(lines)
    except (OSError, EOFError, ValueError, TypeError):
        return None
    now = _by_label(_lines(files))
    changed = [label for label in now if label in before and now[label] != before[label]]
    changes = {
        "added": [label for label in now if label not in before],
        "removed": [label for label in before if label not in now],
        "changed": [f"{label} ({_what_changed(before[label], now[label])})" for label in changed],
    }
    named = (f"{kind} {_examples(names)}" for kind, names in changes.items() if names)
    return "; ".join(named) or "in another order"


def _lines(files: Sequence[AudioFile]) -> Iterator[bytes]:
    for file in files:
        beside = (sidecar(file.path, suffix) for suffix in (".json", ".txt"))
        stats = [_stat(file.on_disk), *(None if path is None else _stat(path) for path in beside)]
        stats += filter(None, [_stat(description_path(file.path))])
        record = (file.name, file.start, file.end, dict(file.fields), stats)
        yield json.dumps(record).encode() + b"\n"


def _stat(path: str | Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # missing, or not a possible path
        return None
    return found.st_size, found.st_mtime_ns


def _by_label(lines: Iterable[bytes]) -> dict[str, list[Any]]:
    records = [json.loads(line) for line in lines]
    return {name + ("" if start is None else f" from {start:g} s"): rest for name, start, *rest in records}


def _what_changed(before: list[Any], now: list[Any]) -> str:
    """Compare end, fields, and size and time of the audio, its `.json` and its `.txt`."""
    if before[-1][0] != now[-1][0]:
        return "the audio"
    return "its caption" if before[-1] != now[-1] else "its line in the list"


def _examples(names: list[str]) -> str:
    more = len(names) - _EXAMPLES
    return ", ".join(map(printable, names[:_EXAMPLES])) + (f" and {more} more" if more > 0 else "")


def _option(name: str, value: Any) -> str:
    """Name a setting as the command's option."""
    if name == "codec" and isinstance(value, Mapping):
        return f"--codec {value.get('id')} (weights {str(value.get('sha256'))[:12]})"
    if name == "files" and value is not None:
        return f"a list of {value} files"
    option = f"--{name}"
    if value is None or value is True:
        return option if value else f"no {option}"
    return f"{option} {value}"
