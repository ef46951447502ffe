"""Find the files below a folder, each once, whatever links there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_DEEPEST = 200  # folders within folders
_TOO_DEEP = f"unreadable: the folder lies more than {_DEEPEST} folders deep"


def walk(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[str, str | None]]:
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
    """Yield (name, path, is a folder) of the entries below a folder, leaving out folders that were visited before."""

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
