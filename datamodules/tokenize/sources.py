"""Source files of a folder of shards (`sources.jsonl.gz`) and the settings that made it (`tokenize.json`)."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.shards.manifest import JOB_NAME
from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.captions import TEXTS, sidecar
from datamodules.tokenize.description import description_path
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write

SOURCES_NAME = "sources.jsonl.gz"
# Keys of `tokenize.json` that may change when a folder grows.
STATE = ("files", "sources_sha256", "next_shard", "fields")


class Source(NamedTuple):
    """A file to tokenize, with size and time of it and of its sidecars."""

    file: AudioFile
    stats: list[
        list[int] | None
    ]  # [bytes, ns] of the audio, `.json` and `.txt` (None if missing), then of other sidecars

    @property
    def line(self) -> bytes:
        """The file and the state of its captions as a line of JSON, for `fingerprint`."""
        file = self.file
        record = (file.name, file.start, file.end, dict(file.fields), self.stats)
        return json.dumps(record).encode() + b"\n"

    @property
    def fields(self) -> Any:
        """The remaining fields of its row, as they come back from JSON."""
        return json.loads(json.dumps(dict(self.file.fields)))


class Known(NamedTuple):
    """Record of a file in a finished folder: its line in `sources.jsonl.gz`."""

    name: str
    start: float | None
    end: float | None
    fields: dict[str, Any]
    stats: list[list[int] | None]  # see `Source`
    problem: str | None  # of the listed file, see `AudioFile`
    path: str  # for reports
    key: str | None  # of its sample, None if it was left out
    audio: str | None  # hash of its audio, None if unknown
    reason: str | None  # for which it was left out
    shortfall: str | None  # which part of it could not be read

    @property
    def part(self) -> tuple[str, float | None, float | None]:
        """Path as listed and segment."""
        return self.name, self.start, self.end


def take_stats(files: Iterable[AudioFile]) -> list[Source]:
    """Look up size and time of each file and of its captions; contents are not read."""
    sources = []
    for file in files:
        beside = [sidecar(file.path, suffix) for suffix in (".json", *TEXTS)] + [description_path(file.path)]
        stats = [_stat(file.on_disk), *(None if path is None else _stat(path) for path in beside)]
        # Only the first three are listed when missing, as in folders from before the others were read.
        stats = stats[:3] + list(filter(None, stats[3:]))
        sources.append(Source(file, stats))
    return sources


def fingerprint(sources: Iterable[Source]) -> str:
    """Hash the fields of all files, and size and time of each file and of its captions."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.line)
    return digest.hexdigest()


def write_sources(folder: Path, known: Iterable[Known]) -> None:
    """Write `sources.jsonl.gz`; a UserError says why the disk refuses."""
    with (
        atomic_write(folder / SOURCES_NAME) as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
    ):
        packed.writelines(json.dumps(record).encode() + b"\n" for record in known)


def read_sources(folder: Path) -> list[Known]:
    """Read the file that `write_sources` wrote.

    Raises:
        UserError: It is missing, unreadable, or of a version that did not record what became of the files.
    """
    path = folder / SOURCES_NAME
    try:
        with gzip.open(path, "rb") as lines:
            return [Known(*json.loads(line)) for line in lines]
    except (OSError, EOFError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} does not say what became of each file, so {folder} cannot grow; use --overwrite to tokenize all "
            "files again, or another --out to keep it."
        ) from error


def read_job(folder: Path) -> dict[str, Any]:
    """Read `tokenize.json`; raises `UserError` if it is unreadable."""
    path = folder / JOB_NAME
    try:
        begun = json.loads(path.read_bytes())
        if not isinstance(begun, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is unreadable ({error}); start again with --overwrite.") from error
    return begun


def write_job(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `tokenize.json`; a UserError says why the disk refuses."""
    with atomic_write(folder / JOB_NAME) as file:
        file.write(json.dumps(settings, indent=1).encode() + b"\n")


def require_same(folder: Path, begun: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Require the settings that a folder was begun with; its files may have changed.

    Raises:
        UserError: They differ; names both values.
    """
    for name in {**begun, **settings}:
        before, now = begun.get(name), settings.get(name)
        if name not in STATE and _compared(name, before) != _compared(name, now):
            raise UserError(
                f"{folder} was begun with {_option(name, before)}, and now there is {_option(name, now)}; "
                "give the same options again to go on with it, another --out, or start again with --overwrite."
            )


def _compared(name: str, value: Any) -> Any:
    """Return what has to be equal: of a codec with a known hash all but its name, which is a path if it is local."""
    if name == "codec" and isinstance(value, Mapping) and value.get("sha256"):
        return {field: value[field] for field in value if field != "id"}
    return value


def _stat(path: str | Path) -> list[int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # missing, or not a possible path
        return None
    return [found.st_size, found.st_mtime_ns]


def _option(name: str, value: Any) -> str:
    """Name a setting as the command's option."""
    if name == "codec" and isinstance(value, Mapping):
        stereo = ", stereo" if value.get("streams") else ""
        weights = str(value.get("sha256"))[:12]
        return f"--codec {value.get('id')} (weights {weights}, {value.get('n_q')} codebooks{stereo})"
    option = f"--{name}"
    if value is None or value is True:
        return option if value else f"no {option}"
    return f"{option} {value}"
