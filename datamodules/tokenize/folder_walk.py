"""Find files in a folder and below it: links are followed once, hidden files and folders are left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """A file, or what stands in the way of files.

    Args:
        name: Its path within the folder, with slashes.
        problem: Why it cannot be used.
    """

    name: str
    problem: str | None = None


def walk_folder(folder: Path, suffixes: Sequence[str]) -> list[Found]:
    """List the files with one of some suffixes, in the order of their names.

    Each folder and each file is taken once, by its real path: under its own name if it has one within the
    folder, else under that of the first link. A link to a folder that holds this one is not followed.

    Args:
        folder: Where to look.
        suffixes: In small letters, with their dots; capitals in names do not matter.
    """
    walk = _Walk(os.path.realpath(folder), tuple(suffixes))
    walk.run()
    return sorted(walk.found, key=lambda found: found.name.split("/"))


class _Walk:
    def __init__(self, root: str, suffixes: tuple[str, ...]) -> None:
        self.found: list[Found] = []
        self._root, self._suffixes = root, suffixes
        self._visited: set[str] = set()  # real paths of folders
        self._folder_links: deque[str] = deque()  # names
        self._file_links: list[str] = []
        self._real: list[tuple[str, str]] = []  # real path of the folder, name within the root

    def run(self) -> None:
        self._visit(self._root, "")
        while self._folder_links:
            waiting = sorted(self._folder_links)
            self._folder_links.clear()
            for name in waiting:
                target = os.path.realpath(os.path.join(self._root, name))
                if not _holds(target, self._root):
                    self._visit(target, f"{name}/")
        self._take_file_links()

    def _visit(self, folder: str, prefix: str) -> None:
        """Note what lies in a folder, given by its real path, and below it."""
        waiting = [(folder, prefix)]
        while waiting:
            folder, prefix = waiting.pop()
            if folder in self._visited:
                continue
            self._visited.add(folder)
            try:
                with os.scandir(folder) as entries:
                    waiting += [inner for entry in entries if (inner := self._note(entry, folder, prefix))]
            except OSError as error:
                self.found.append(
                    Found(prefix.rstrip("/") or ".", f"unreadable: the folder ({error.strerror})")
                )

    def _note(self, entry: os.DirEntry[str], folder: str, prefix: str) -> tuple[str, str] | None:
        """Note an entry; a folder is returned, to be visited."""
        if entry.name.startswith("."):  # "._song.wav" is what macOS leaves behind
            return None
        name = prefix + entry.name
        wanted = os.path.splitext(entry.name)[1].lower() in self._suffixes
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link that leads to itself
            is_folder = False
        if is_folder and wanted:
            self.found.append(Found(name, "not a file: it is a folder, whose own files are listed"))
        if entry.is_symlink():
            if is_folder:
                self._folder_links.append(name)
            elif wanted:
                self._file_links.append(name)
        elif is_folder:
            return os.path.join(folder, entry.name), f"{name}/"
        elif wanted:
            self.found.append(Found(name))
            self._real.append((folder, name))
        return None

    def _take_file_links(self) -> None:
        if not self._file_links:
            return
        first = {os.path.join(folder, name.rpartition("/")[2]): name for folder, name in self._real}
        for name in sorted(self._file_links, key=lambda name: name.split("/")):
            target = os.path.realpath(os.path.join(self._root, name))
            same = first.setdefault(target, name)
            self.found.append(Found(name, None if same == name else f"duplicate: a link to {same}"))


def _holds(folder: str, other: str) -> bool:
    """Whether a folder is another one or lies above it."""
    return os.path.commonpath([folder, other]) == folder
