"""List audio files with their captions, before any of them is opened.

A folder has a `.json` or `.txt` beside each file; a `manifest.jsonl` has one line for each.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from magnet_train.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_OTHER_AUDIO = (".m4a", ".aac", ".wma", ".opus", ".aif", ".aiff", ".wv", ".ape")
_CAPTION_FIELDS = ("text", "description", "caption")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_KEY = 80


@dataclass(frozen=True)
class AudioFile:
    """One file to tokenize.

    Args:
        path: Where it lies.
        key: Its name in the shards: unique, and safe as a member of a tar.
        metadata: JSON of the sample: `text`, `source` (path as listed) and whatever came along.
        problem: Why it cannot be used, as far as that shows without opening it.
    """

    path: Path
    key: str
    metadata: Mapping[str, Any]
    problem: str | None = None


def list_audio(source: Path) -> list[AudioFile]:
    """List what there is to tokenize, in a fixed order.

    Args:
        source: A folder, searched recursively, or a `.jsonl` whose lines hold `path` (relative to the
            `.jsonl`), `text` and other fields.

    Returns:
        At least one file; those with a `problem` stay in, for the report.

    Raises:
        UserError: Nothing is there, or a line of the manifest cannot be understood.
    """
    if source.is_dir():
        found = list(_walk_folder(source))
        if not found:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(f"{source} holds no audio ({kinds}); name the folder your files lie in.")
    elif source.is_file():
        found = list(_read_manifest(source))
        if not found:
            raise UserError(f"{source} has no lines; write one JSON object with path and text for each file.")
    else:
        raise UserError(f"there is no folder or manifest at {source}; check the path.")
    twice = next((name for name, count in Counter(name for _, name, *_ in found).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{source} lists {twice} more than once; keep one of the lines.")
    taken: set[str] = set()
    return [
        AudioFile(path, _make_key(name, taken), {**metadata, "source": name}, problem)
        for path, name, metadata, problem in found
    ]


_Found = tuple[Path, str, dict[str, Any], str | None]  # path, name as listed, metadata, problem


def _walk_folder(folder: Path) -> Iterator[_Found]:
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or not path.is_file():  # "._song.wav" is what macOS leaves behind
            continue
        name = path.relative_to(folder).as_posix()
        if suffix in SUFFIXES:
            yield path, name, *_caption_beside(path)
        elif suffix in _OTHER_AUDIO:
            yield path, name, {}, f"{suffix[1:]} is not read: convert it to wav, flac, ogg or mp3"


def _caption_beside(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return metadata and problem from the `.json` or else the `.txt` beside an audio file."""
    sidecar = next((p for p in (path.with_suffix(".json"), path.with_suffix(".txt")) if p.is_file()), None)
    if sidecar is None:
        return {}, "no caption: no .json or .txt beside it"
    try:
        content = sidecar.read_text(encoding="utf-8")
        record = json.loads(content) if sidecar.suffix == ".json" else {"text": content}
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"unreadable caption: {sidecar.name}: {error}"
    if not isinstance(record, dict):
        return {}, f"unreadable caption: {sidecar.name} is no JSON object"
    return _take_caption(record)


def _read_manifest(manifest: Path) -> Iterator[_Found]:
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{manifest} is unreadable ({error}); give a folder or a .jsonl in UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{manifest} line {number} is no JSON ({error}); mend the line.") from error
        if not isinstance(record, dict) or not isinstance(record.get("path"), str):
            raise UserError(f"{manifest} line {number} has no path; write an object with path and text.")
        name = record.pop("path")
        yield manifest.parent / name, name, *_take_caption(record)


def _take_caption(record: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Move the caption, under whichever of its names it stands, to `text`."""
    field = next((name for name in _CAPTION_FIELDS if record.get(name)), None)
    if field is None:
        return record, f"no caption: none of {', '.join(_CAPTION_FIELDS)} is filled in"
    text = record.pop(field)
    if not isinstance(text, str):
        return record, f"unreadable caption: {field} is a {type(text).__name__}, not a string"
    text = " ".join(text.split())
    if not text:
        return record, "no caption: it is blank"
    return {**record, "text": text}, None


def _make_key(name: str, taken: set[str]) -> str:
    """Turn a path into a key without dots and slashes that no other file has, the same in every run."""
    parts = PurePath(name).with_suffix("").parts
    key = "__".join(filter(None, (_UNSAFE.sub("_", part).strip("_-") for part in parts))) or "clip"
    if key in taken or len(key) > _LONGEST_KEY:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
        key = f"{key[: _LONGEST_KEY - 13]}-{digest}"
    taken.add(key)
    return key
