"""What is known about an audio file in words: from the list it stands in, a file beside it, and its own tags."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from magnet_train.errors import UserError

CAPTION_FIELDS = ("text", "description", "caption")
_TAGS = {  # as tinytag calls them, and as the datasets of the field do
    "title": "title",
    "artist": "artist",
    "album": "album",
    "genre": "genre",
    "bpm": "bpm",
    "initial_key": "key",
    "mood": "moods",
    "description": "description",
    "comment": "comment",
    "license": "license",
}
_CAPTION_OF_TAGS = ("genre", "moods", "title", "artist")  # a comment if there are none of these


class CaptionError(ValueError):
    """Why a file has no caption: a kind ("no caption") and, after a colon, details."""


class CaptionTemplate:
    """Make captions of fields, as in "{genre} with {instrument}".

    Args:
        pattern: Text with names of fields in braces.

    Raises:
        UserError: It names no field, or is garbled.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        try:
            names = [name for _, name, *_ in Formatter().parse(pattern) if name is not None]
        except ValueError as error:
            raise UserError(
                f"--caption-template {pattern!r} is garbled ({error}); close each brace."
            ) from error
        if not names or not all(name.isidentifier() for name in names):
            raise UserError(
                f"--caption-template {pattern!r} names no field; write one like '{{genre}} with {{instrument}}'."
            )
        self.names = names

    def fill(self, fields: Mapping[str, Any]) -> str:
        """Put fields into the pattern.

        Raises:
            CaptionError: One of them is missing or empty.
        """
        words = {name: as_words(fields.get(name)) for name in self.names}
        missing = [name for name, value in words.items() if not value]
        if missing:
            raise CaptionError(f"no caption: the template wants {', '.join(missing)}")
        return self.pattern.format_map(words)


def describe(
    path: Path, listed: Mapping[str, Any], template: CaptionTemplate | None = None
) -> dict[str, Any]:
    """Collect the metadata of an audio file, with its caption as `text`.

    What the list says goes before the `.json` or `.txt` beside the file, and that before the file's tags. A
    caption is what stands under `text`, `description` or `caption`; where there is none the template makes
    one, and without a template the tags for genre, mood, title and artist, or their comment.

    Args:
        path: The audio file.
        listed: Fields of its line in a list.
        template: For files without a caption of their own.

    Returns:
        JSON primitives; `text` is filled in.

    Raises:
        CaptionError: There is no caption, or it cannot be read.
    """
    beside = _read_beside(path)
    own = beside if beside is not None else {}
    tags = _read_tags(path)
    fields = {**tags, **own, **listed}
    # of one source only: a caption in the list must not give way to a `text` beside the file
    for source in (listed, own):
        name = next((name for name in CAPTION_FIELDS if source.get(name)), None)
        if name is not None:
            text = source[name]
            if not isinstance(text, str):
                raise CaptionError(f"unreadable caption: {name} is a {type(text).__name__}, not a string")
            fields.pop(name)
            return _with_text(fields, text)
    if template is not None:
        return _with_text(fields, template.fill(fields))
    if "description" in tags:
        return _with_text(fields, str(fields.pop("description")))
    text = as_words([tags[name] for name in _CAPTION_OF_TAGS if name in tags]) or tags.get("comment", "")
    if text:
        return _with_text(fields, text)
    if listed or own:
        raise CaptionError(f"no caption: none of {', '.join(CAPTION_FIELDS)} is filled in")
    raise CaptionError("no caption: no .json or .txt beside it, and no tags in it")


def load_json(text: str) -> Any:
    """Decode JSON, strictly: NaN and Infinity are not JSON, and shards must not hold them.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deep.
    """
    return json.loads(text, parse_constant=_refuse)


def as_words(value: Any) -> str:
    """Write a field as a person would: lists with commas, nothing for nothing."""
    if value is None:
        return ""
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        return ", ".join(filter(None, map(as_words, value)))
    return " ".join(str(value).split())


def _with_text(fields: Mapping[str, Any], text: str) -> dict[str, Any]:
    text = " ".join(text.split())
    if not text:
        raise CaptionError("no caption: it is blank")
    return {**fields, "text": text}


def _read_beside(path: Path) -> dict[str, Any] | None:
    """Read the `.json` or else the `.txt` beside an audio file; None if there is neither."""
    # os.path.isfile: a name of 255 bytes may not have room for the longer suffix, which Path.is_file raises
    sidecar = next((p for p in map(path.with_suffix, (".json", ".txt")) if os.path.isfile(p)), None)
    if sidecar is None:
        return None
    try:
        content = sidecar.read_text(encoding="utf-8")
        record = load_json(content) if sidecar.suffix == ".json" else {"text": content}
    except (OSError, ValueError, RecursionError) as error:
        raise CaptionError(f"unreadable caption: {sidecar.name}: {error}") from error
    if not isinstance(record, dict):
        raise CaptionError(f"unreadable caption: {sidecar.name} is no JSON object")
    return record


def _read_tags(path: Path) -> dict[str, Any]:
    """Read ID3, Vorbis or RIFF tags; a file without any, or with broken ones, gives none."""
    from tinytag import TinyTag, TinyTagException

    try:
        found = TinyTag.get(path, duration=False).as_dict()
    except (TinyTagException, OSError, ValueError):
        return {}
    words = {ours: as_words(found.get(theirs)) for theirs, ours in _TAGS.items()}
    return {name: value for name, value in words.items() if value}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
