"""List audio files before any of them is opened: those in a folder, or those of a list."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from datamodules.tokenize.audio_tables import SUFFIXES, Listed, read_list
from datamodules.tokenize.folder_walk import walk_folder
from magnet_train.errors import UserError

# Sound that libsndfile does not read; ffmpeg does.
_SUFFIXES_OF_OTHERS = ".m4a .m4b .mp4 .mov .m4v .aac .ac3 .wma .asf .webm .weba .mka"
_SUFFIXES_OF_OTHERS += " .mkv .avi .amr .wv .ape .tta .tak .mpc .dsf .dff .ra .mp2"
_OTHER_AUDIO = tuple(_SUFFIXES_OF_OTHERS.split())
_NOT_READ = " is not read"  # after a suffix, the kind of reason of such files
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_KEY = 80


@dataclass(frozen=True)
class AudioFile:
    """One clip to tokenize: a file or a part of one.

    Args:
        path: Where it lies.
        name: Its path as listed.
        key: Its name in the shards: unique, and safe as a member of a tar.
        start: Where the clip starts (s), None at the beginning.
        end: Where it ends (s), None at the end.
        fields: What the list says of it.
        problem: Why it cannot be used, as far as that shows without opening it.
        by_id: Found by the id of MusicCaps or AudioCaps: it may be the video, or its clip cut already.
    """

    path: Path
    name: str
    key: str
    start: float | None
    end: float | None
    fields: Mapping[str, Any]
    problem: str | None = None
    by_id: bool = False

    @property
    def label(self) -> str:
        """Path and part, for reports."""
        return f"{self.path}{_segment(self.start, self.end)}"


def list_audio(source: Path) -> list[AudioFile]:
    """List what there is to tokenize, in a fixed order.

    Args:
        source: A folder, searched recursively; or a `.jsonl` or `.csv` with paths relative to itself.

    Returns:
        At least one file; those with a `problem` stay in, for the report.

    Raises:
        UserError: Nothing is there, or a line of a list cannot be understood.
    """
    if source.is_dir():
        found = list(_walk_folder(source))
        if not found:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(f"{source} holds no audio ({kinds}); name the folder your files lie in.")
    elif source.is_file():
        found = list(read_list(source))
        if not found:
            raise UserError(f"{source} has no lines; write one with path and text for each file.")
    else:
        raise UserError(f"there is no folder or list at {source}; check the path.")
    seen: set[str] = set()
    keys: set[str] = set()
    return [_take(listed, seen, keys) for listed in found]


def suffixes_not_read(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Count, among reasons for leaving files out, those of sound in formats that are not read, by suffix."""
    kinds = (reason.partition(":")[0] for reason in reasons)
    return Counter(kind.removesuffix(_NOT_READ) for kind in kinds if kind.endswith(_NOT_READ)).most_common()


def _take(listed: Listed, seen: set[str], keys: set[str]) -> AudioFile:
    """Give a file its key, and say so if it was listed before."""
    identity = listed.name + _segment(listed.start, listed.end)
    problem = "duplicate: listed before" if identity in seen else listed.problem
    seen.add(identity)
    key = _make_key(listed.name, listed.start, identity, keys)
    start, end, fields = listed.start, listed.end, listed.fields
    return AudioFile(listed.path, listed.name, key, start, end, fields, problem, listed.by_id)


def _walk_folder(folder: Path) -> Iterator[Listed]:
    for name, problem in walk_folder(folder, SUFFIXES + _OTHER_AUDIO):
        suffix = os.path.splitext(name)[1].lower()
        if problem is None and suffix in _OTHER_AUDIO:
            problem = f"{suffix[1:]}{_NOT_READ}: convert it to wav, flac, ogg or mp3"
        yield Listed(folder / name, name, None, None, {}, problem)


def _segment(start: float | None, end: float | None) -> str:
    if start is None and end is None:
        return ""
    return f" from {start or 0:g} s" + ("" if end is None else f" to {end:g} s")


def _make_key(name: str, start: float | None, identity: str, taken: set[str]) -> str:
    """Turn a path into a key without dots and slashes that no other file has, the same in every run."""
    folder, _, base = name.rpartition("/")
    parts = [*PurePath(folder).parts, os.path.splitext(base)[0]]
    key = "__".join(filter(None, (_UNSAFE.sub("_", part).strip("_-") for part in parts))) or "clip"
    if start:
        key += f"-{start:g}s".replace(".", "_")
    while key in taken or len(key) > _LONGEST_KEY:
        digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
        key = f"{key[: _LONGEST_KEY - 13]}-{digest}"
        identity += "+"  # listed twice, word for word
    taken.add(key)
    return key
