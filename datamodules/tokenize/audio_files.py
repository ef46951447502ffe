"""List the audio files to tokenize, in a folder or in a list, without opening them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from datamodules.tokenize.audio_tables import SUFFIXES, read_list
from datamodules.tokenize.audio_tables import AudioFile as AudioFile
from magnet_train.errors import UserError

# Formats that ffmpeg reads and libsndfile does not.
_UNREAD_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".mov", ".m4v", ".aac", ".ac3", ".wma", ".asf", ".webm", ".weba", ".mka"),
    *(".mkv", ".avi", ".amr", ".wv", ".ape", ".tta", ".tak", ".mpc", ".dsf", ".dff", ".ra", ".mp2"),
)
_UNREAD = " is not read"  # after a suffix, the kind of their reason
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_KEY_LENGTH = 80
_DEEPEST = 200  # folders within folders
_TOO_DEEP = f"unreadable: the folder lies more than {_DEEPEST} folders deep"


def list_audio(source: Path) -> list[AudioFile]:
    """List the clips to tokenize, in a fixed order; at least one, those with a `problem` included for the report.

    Args:
        source: A folder, searched recursively; or a `.jsonl` or `.csv` with paths relative to itself.

    Raises:
        UserError: Nothing is there, or a line of a list cannot be understood.
    """
    if source.is_dir():
        listed = [
            AudioFile(source / name, name, problem=problem or _unread(name))
            for name, problem in _walk(source, SUFFIXES + _UNREAD_SUFFIXES)
        ]
        if not listed:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(f"{source} holds no audio ({kinds}); name the folder that holds your files.")
    elif source.is_file():
        listed = list(read_list(source, _audio_below))
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


def _unread(name: str) -> str | None:
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in _UNREAD_SUFFIXES:
        return None
    return f"{suffix[1:]}{_UNREAD}: convert it to wav, flac, ogg or mp3"


def _audio_below(folder: Path) -> Iterator[str]:
    return (name for name, problem in _walk(folder, SUFFIXES) if problem is None)


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """List the files below a folder that have one of some suffixes, sorted by name; each with a problem, or None.

    Each folder and each file is listed once, by its real path: under its own name if that lies within the folder,
    otherwise under that of the first link. A link to a folder that contains this one is not followed, and hidden
    files and folders are skipped.
    """
    root = os.path.realpath(folder)
    found: dict[str, str | None] = {}
    real_files: dict[str, str] = {}  # names of the files that are not links, by real path
    visited: set[str] = set()  # real paths of folders
    file_links: list[str] = []
    folder_links = [""]
    while folder_links:  # breadth first: names with fewer links win
        links, folder_links = sorted(folder_links), []
        for link in links:
            top = os.path.realpath(os.path.join(root, link))
            if link and os.path.commonpath([top, root]) == top:
                continue
            for name, path, is_folder in _visit(top, link, visited, found):
                is_wanted = os.path.splitext(name)[1].lower() in suffixes
                if is_folder and is_wanted:
                    found[name] = "not a file: it is a folder, whose own files are listed"
                if not (is_folder or is_wanted):
                    continue
                if os.path.islink(path):
                    (folder_links if is_folder else file_links).append(name)
                elif not is_folder:
                    found[name], real_files[path] = None, name
    for name in sorted(file_links, key=lambda name: name.split("/")):
        first = real_files.setdefault(os.path.realpath(os.path.join(root, name)), name)
        found[name] = None if first == name else f"duplicate: a link to {first}"
    return sorted(found.items(), key=lambda entry: entry[0].split("/"))


def _visit(
    top: str, link: str, visited: set[str], problems: dict[str, str | None]
) -> Iterator[tuple[str, str, bool]]:
    """Yield the entries of a folder and of those below it that were not visited before: name, path, and if a folder."""

    def name_of(path: str) -> str:
        return os.path.normpath(os.path.join(link, os.path.relpath(path, top)))

    def note(error: OSError) -> None:
        problems[name_of(error.filename)] = f"unreadable: the folder ({error.strerror})"

    for path, folders, files in os.walk(top, onerror=note):
        if path in visited:
            folders.clear()
            continue
        visited.add(path)
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = name_of(path)
        if path.count(os.sep) - top.count(os.sep) >= _DEEPEST:  # os.walk recurses
            problems.update(dict.fromkeys((f"{within}/{name}" for name in folders), _TOO_DEEP))
            folders.clear()
        for name, is_folder in [*((name, True) for name in folders), *((name, False) for name in files)]:
            if not name.startswith("."):
                yield os.path.normpath(os.path.join(within, name)), os.path.join(path, name), is_folder


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
        part += "+"  # the same path and part twice
    keys.add(key)
    return key
