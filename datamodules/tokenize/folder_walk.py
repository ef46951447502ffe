"""Recursive listing of a folder: symbolic links are followed once, hidden files and folders are skipped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """A file, or something that prevents reading one."""

    name: str  # its path within the folder, with slashes
    problem: str | None = None  # why it cannot be used


def walk_folder(folder: Path, suffixes: Sequence[str]) -> list[Found]:
    """List the files that have one of some suffixes, sorted by name.

    Each folder and each file is listed once, by its real path: under its own name if that lies within the folder,
    otherwise under that of the first link. A link to a folder that contains this one is not followed.

    Args:
        folder: Where to search.
        suffixes: In lower case, with their dots; the case of names is ignored.
    """
    walk = _Walk(os.path.realpath(folder), tuple(suffixes))
    walk.visit(walk.root, "")
    while walk.folder_links:  # breadth first: names with fewer links win
        names, walk.folder_links = sorted(walk.folder_links), []
        for name in names:
            target = os.path.realpath(os.path.join(walk.root, name))
            if os.path.commonpath([target, walk.root]) != target:
                walk.visit(target, f"{name}/")
    walk.take_file_links()
    return sorted(walk.found, key=lambda found: found.name.split("/"))


class _Walk:
    """State of one walk; names are relative to `root`."""

    def __init__(self, root: str, suffixes: tuple[str, ...]) -> None:
        self.root = root
        self.found: list[Found] = []
        self.folder_links: list[str] = []
        self._suffixes = suffixes
        self._visited: set[str] = set()  # real paths of folders
        self._file_links: list[str] = []
        self._names: dict[str, str] = {}  # of the files that are not links, by real path

    def visit(self, folder: str, prefix: str) -> None:
        """List a folder, given by its real path, and everything below it."""
        pending = [(folder, prefix)]
        while pending:
            folder, prefix = pending.pop()
            if folder in self._visited:
                continue
            self._visited.add(folder)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if not entry.name.startswith(".") and self._take(entry, folder, prefix):
                            pending.append((os.path.join(folder, entry.name), f"{prefix}{entry.name}/"))
            except OSError as error:
                name = prefix.rstrip("/") or "."
                self.found.append(Found(name, f"unreadable: the folder ({error.strerror})"))

    def _take(self, entry: os.DirEntry[str], folder: str, prefix: str) -> bool:
        """List a file or remember a link; return whether the entry is a folder to visit."""
        name = prefix + entry.name
        is_wanted = os.path.splitext(entry.name)[1].lower() in self._suffixes
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        if is_folder and is_wanted:
            self.found.append(Found(name, "not a file: it is a folder, whose own files are listed"))
        if entry.is_symlink():
            if is_folder:
                self.folder_links.append(name)
            elif is_wanted:
                self._file_links.append(name)
            return False
        if is_wanted and not is_folder:
            self.found.append(Found(name))
            self._names[os.path.join(folder, entry.name)] = name
        return is_folder

    def take_file_links(self) -> None:
        """List linked files, each under its first link, unless they are listed already."""
        for name in sorted(self._file_links, key=lambda name: name.split("/")):
            target = os.path.realpath(os.path.join(self.root, name))
            first = self._names.setdefault(target, name)
            self.found.append(Found(name, None if first == name else f"duplicate: a link to {first}"))
