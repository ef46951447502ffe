"""List the audio files to tokenize, those in a folder or those in a list, without opening them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath

from datamodules.tokenize.audio_tables import SUFFIXES, read_list
from datamodules.tokenize.audio_tables import AudioFile as AudioFile
from datamodules.tokenize.folder_walk import walk_folder
from magnet_train.errors import UserError

# Formats that ffmpeg reads and libsndfile does not.
_UNREAD_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".mov", ".m4v", ".aac", ".ac3", ".wma", ".asf", ".webm", ".weba", ".mka"),
    *(".mkv", ".avi", ".amr", ".wv", ".ape", ".tta", ".tak", ".mpc", ".dsf", ".dff", ".ra", ".mp2"),
)
_UNREAD = " is not read"  # after a suffix, the kind of their reason
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_KEY_LENGTH = 80


def list_audio(source: Path) -> list[AudioFile]:
    """List the clips to tokenize, in a fixed order.

    Args:
        source: A folder, searched recursively; or a `.jsonl` or `.csv` with paths relative to itself.

    Returns:
        At least one clip; those with a `problem` are included, for the report.

    Raises:
        UserError: Nothing is there, or a line of a list cannot be understood.
    """
    if source.is_dir():
        listed = [
            _in_folder(source, name, problem)
            for name, problem in walk_folder(source, SUFFIXES + _UNREAD_SUFFIXES)
        ]
        if not listed:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(f"{source} holds no audio ({kinds}); name the folder that holds your files.")
    elif source.is_file():
        listed = list(read_list(source))
        if not listed:
            raise UserError(f"{source} has no lines; write one with path and text for each file.")
    else:
        raise UserError(f"there is no folder or list at {source}; check the path.")
    parts: set[str] = set()
    keys: set[str] = set()
    return [_with_key(file, parts, keys) for file in listed]


def suffixes_not_read(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Count the suffixes of unread audio formats among the reasons of skipped files."""
    kinds = (reason.partition(":")[0] for reason in reasons)
    return Counter(kind.removesuffix(_UNREAD) for kind in kinds if kind.endswith(_UNREAD)).most_common()


def _in_folder(folder: Path, name: str, problem: str | None) -> AudioFile:
    suffix = os.path.splitext(name)[1].lower()
    if problem is None and suffix in _UNREAD_SUFFIXES:
        problem = f"{suffix[1:]}{_UNREAD}: convert it to wav, flac, ogg or mp3"
    return AudioFile(folder / name, name, problem=problem)


def _with_key(file: AudioFile, parts: set[str], keys: set[str]) -> AudioFile:
    """Add a unique key, and mark a clip that was listed before."""
    part = file.name + file.segment
    problem = "duplicate: listed before" if part in parts else file.problem
    parts.add(part)
    return replace(file, key=_make_key(file.name, file.start, part, keys), problem=problem)


def _make_key(name: str, start: float | None, part: str, keys: set[str]) -> str:
    """Make a unique key without dots and slashes from a path, the same in every run."""
    folder, _, base = name.rpartition("/")
    names = [*PurePath(folder).parts, os.path.splitext(base)[0]]
    key = "__".join(filter(None, (_UNSAFE.sub("_", name).strip("_-") for name in names))) or "clip"
    if start:
        key += f"-{start:g}s".replace(".", "_")
    while key in keys or len(key) > _MAX_KEY_LENGTH:
        digest = hashlib.blake2b(part.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
        key = f"{key[: _MAX_KEY_LENGTH - 13]}-{digest}"
        part += "+"  # the same path and part twice
    keys.add(key)
    return key
