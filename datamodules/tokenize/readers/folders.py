"""Folders: audio files with what lies beside them, an AudioFolder of the datasets library, or parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path, PurePath

from datamodules.tokenize.description import SUFFIX as DESCRIPTION
from datamodules.tokenize.readers.audio_file import AV_SUFFIXES, SUFFIXES, AudioFile, Listing
from datamodules.tokenize.readers.layouts import UnknownLayoutError, read_table
from datamodules.tokenize.readers.naming import MISSING
from datamodules.tokenize.readers.tables import TABLE_SUFFIXES
from datamodules.tokenize.readers.walk import walk
from magnet_train.errors import UserError
from magnet_train.storage.plain_text import few, printable

# Formats that ffmpeg reads and we do not.
_UNREAD_SUFFIXES = (
    ".ac3", ".avi", ".amr", ".wv", ".ape", ".tta", ".tak", ".mpc", ".dsf", ".dff", ".ra", ".mp2",
)  # fmt: skip
UNREAD = " is not read"  # ends the kind of their reason: "avi is not read"
NEEDS_AV = 'pip install "magnet-train[av]" reads it'
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def audio_below(folder: Path) -> Iterator[str]:
    """Yield the names of the audio files below a folder."""
    return (name for name, problem in walk(folder, readable_suffixes()) if problem is None)


def readable_suffixes() -> tuple[str, ...]:
    """Return the suffixes of the audio files that can be read here."""
    return SUFFIXES + (AV_SUFFIXES if find_spec("av") else ())


def read_folder(folder: Path) -> Listing:
    """Read a folder, searched recursively.

    Raises:
        UserError: It holds no audio, or a table of it cannot be understood.
    """
    suffixes = SUFFIXES + AV_SUFFIXES + _UNREAD_SUFFIXES
    others = (*TABLE_SUFFIXES, ".gz")
    found = walk(folder, suffixes + others)
    tables = [name for name, problem in found if problem is None and _suffix(name) in TABLE_SUFFIXES]
    audio = [
        AudioFile(folder / name, name, problem=problem or _unread(name))
        for name, problem in found
        if _suffix(name) in suffixes or (problem is not None and not name.lower().endswith(others))
    ]
    parquets = [name for name in tables if _suffix(name) == ".parquet"]
    if not audio and parquets:
        unread = [name for name in tables if name not in parquets]
        return _naming(unread, read_parquets(folder, parquets))
    if not audio:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        named = f", and {printable(few(tables))} is read if you name it" if tables else ""
        raise UserError(f"{folder} holds no audio ({kinds}){named}; name the folder that holds your files.")
    stems = {os.path.splitext(file.name)[0] for file in audio}
    metadata = [name for name in tables if PurePath(name).name in _METADATA]
    unread = [name for name in tables if name not in metadata and not _is_sidecar(name, stems)]
    return _naming(unread, _with_metadata(folder, audio, metadata))


def _naming(unread: Sequence[str], listing: Listing) -> Listing:
    """Add a note on tables that are not read."""
    note = f"not read: {printable(few(unread))}; to read a table, give it as --audio"
    return replace(listing, notes=[*listing.notes, note]) if unread else listing


def read_parquets(folder: Path, names: Sequence[str]) -> Listing:
    """Read several parquet files with the same columns, as one list."""
    files: list[AudioFile] = []
    notes: dict[str, None] = {}
    columns: dict[str, None] = {}
    for name in names:
        part = read_table(folder / name, audio_below)
        parent = PurePath(name).parent
        files += [replace(file, name=(parent / file.name).as_posix()) for file in part.files]
        columns.update(dict.fromkeys(part.columns))
        notes.update(dict.fromkeys(part.notes))
        layout = part.layout
    layout = layout if len(names) == 1 else f"{len(names)} files, each {layout}"
    return Listing(files, layout, tuple(columns), tuple(notes))


def _with_metadata(folder: Path, audio: Sequence[AudioFile], tables: Sequence[str]) -> Listing:
    """Add the rows of metadata files to the audio files that they name."""
    used: list[str] = []
    columns: dict[str, None] = {}
    notes: list[str] = []
    rows: dict[str, list[AudioFile]] = {}
    for table in tables:
        beside = [name for name in used if PurePath(name).parent == PurePath(table).parent]
        if beside:
            raise UserError(f"{folder} has both {beside[0]} and {table}; remove one of them.")
        try:
            part = read_table(folder / table, _no_ids)
        except UnknownLayoutError:
            notes.append(f"not read: {table}, which has no column file_name")
            continue
        used.append(table)
        columns.update(dict.fromkeys(part.columns))
        notes += part.notes
        for row in part.files:
            name = os.path.normpath(PurePath(table).parent / row.name)
            rows.setdefault(name, []).append(replace(row, name=name))
    if not used:
        return Listing(audio, "audio files", notes=notes)
    files: list[AudioFile] = []
    without = 0
    for file in audio:
        mine = rows.pop(file.name, [])
        without += not mine
        files += [replace(row, path=file.path, problem=file.problem or row.problem) for row in mine] or [file]
    lost = [row for left in rows.values() for row in left]
    files += [
        replace(row, problem=row.problem or f"{MISSING}: there is no such file in the folder") for row in lost
    ]
    if without:
        notes.append(f"without a row in {printable(few(used))}: {without} of {len(audio)} files")
    return Listing(files, f"an AudioFolder ({', '.join(used)})", tuple(columns), notes)


def _no_ids(folder: Path) -> Iterable[str]:
    raise UnknownLayoutError(f"{folder} has a metadata file with ids.")


def _is_sidecar(name: str, stems: set[str]) -> bool:
    stem, suffix = os.path.splitext(name)
    return name.endswith(DESCRIPTION) or (suffix.lower() == ".json" and stem in stems)


def _unread(name: str) -> str | None:
    suffix = _suffix(name)
    if suffix in AV_SUFFIXES and find_spec("av") is None:
        return f"{suffix[1:]}{UNREAD}: {NEEDS_AV}; or convert it to wav, flac, ogg or mp3"
    if suffix in _UNREAD_SUFFIXES:
        return f"{suffix[1:]}{UNREAD}: convert it to wav, flac, ogg or mp3"
    return None


def _suffix(name: str) -> str:
    """Return the suffix in small letters, that of the table for one that is gzipped."""
    return os.path.splitext(name.lower().removesuffix(".gz"))[1]
