"""List the audio files to tokenize, in a folder or in a list, without opening them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath

from datamodules.tokenize.readers.audio_file import AudioFile as AudioFile
from datamodules.tokenize.readers.audio_file import Listing as Listing
from datamodules.tokenize.readers.folders import UNREAD, audio_below, read_folder, read_parquets
from datamodules.tokenize.readers.layouts import read_table
from magnet_train.errors import UserError
from magnet_train.storage.hub import DATASETS, find_dataset

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_KEY_LENGTH = 80


def local_source(name: str) -> Path:
    """Return a folder, table or pattern; one at hf://datasets/ is downloaded first, see `find_dataset`."""
    return find_dataset(name) if name.startswith(DATASETS) else Path(name)


def list_audio(source: Path) -> list[AudioFile]:
    """List the clips to tokenize, see `find_audio`."""
    return list(find_audio(source).files)


def find_audio(source: Path) -> Listing:
    """List the clips to tokenize in a fixed order, at least one; clips with a `problem` are included for the report.

    Args:
        source: A folder, searched recursively; a table (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`) with paths
            relative to itself; or several parquet files of a folder, as in `data/train-*.parquet`.

    Raises:
        UserError: Nothing is there, or a row of a table cannot be understood.
    """
    if source.is_dir():
        listing = read_folder(source)
    elif source.is_file():
        listing = read_table(source, audio_below)
    elif "*" in source.name and (names := sorted(path.name for path in source.parent.glob(source.name))):
        listing = read_parquets(source.parent, names)
    else:
        raise UserError(f"there is no folder or list at {source}; check the path.")
    parts: set[str] = set()
    keys: set[str] = set()
    return replace(listing, files=[_with_key(file, parts, keys) for file in listing.files])


def suffixes_not_read(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Count the suffixes of unread audio formats among the reasons of skipped files."""
    kinds = (reason.partition(":")[0] for reason in reasons)
    return Counter(kind.removesuffix(UNREAD) for kind in kinds if kind.endswith(UNREAD)).most_common()


def _with_key(file: AudioFile, parts: set[str], keys: set[str]) -> AudioFile:
    """Add a unique key, and mark a clip that was listed before."""
    part = file.name + file.segment
    problem = "duplicate: listed before" if part in parts else file.problem
    parts.add(part)
    return replace(file, key=make_key(file.name, file.start, part, keys), problem=problem)


def make_key(name: str, start: float | None, part: str, keys: set[str]) -> str:
    """Make a unique key without dots and slashes from a path, the same in every run."""
    folder, _, base = name.rpartition("/")
    names = [*PurePath(folder).parts, os.path.splitext(base)[0]]
    key = "__".join(filter(None, (_UNSAFE.sub("_", name).strip("_-") for name in names))) or "clip"
    if start:
        key += f"-{start:g}s".replace(".", "_")
    while key in keys or len(key) > _MAX_KEY_LENGTH:
        digest = hashlib.blake2b(part.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
        key = f"{key[: _MAX_KEY_LENGTH - 13]}-{digest}"
        part += f"+{len(keys)}"  # the same path and part may be listed thousands of times
    keys.add(key)
    return key
