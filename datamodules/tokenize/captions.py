"""What is known about an audio file in words: from the list it stands in, a file beside it, and its own tags."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from magnet_train.errors import UserError
from magnet_train.storage.plain_text import decode_text, load_json, printable

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


class _Piece(NamedTuple):
    """A part of a template: text, and the field behind it, if there is one."""

    literal: str
    name: str | None
    format: str | None
    conversion: str | None


_WIDE_FORMAT = re.compile(r"\d{3}")
_CONVERSIONS: dict[str, Callable[[str], str]] = {"s": str, "r": repr, "a": ascii}


class CaptionTemplate:
    """Make captions of fields, as in "{genre} with {instrument}" or "{bpm:d} bpm".

    Args:
        pattern: Text with names of fields in braces, each with a format as Python has it if you like.

    Raises:
        UserError: It names no field, or is garbled.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        try:
            self._pieces = [_Piece(*piece) for piece in Formatter().parse(pattern)]
        except ValueError as error:
            raise UserError(
                f"--caption-template {pattern!r} is garbled ({error}); close each brace."
            ) from error
        names = [piece.name for piece in self._pieces if piece.name is not None]
        if not names or not all(name.isidentifier() for name in names):
            raise UserError(
                f"--caption-template {pattern!r} names no field; write one like '{{genre}} with {{instrument}}'."
            )
        for piece in self._pieces:
            if piece.conversion is not None and piece.conversion not in _CONVERSIONS:
                raise UserError(
                    f"--caption-template {pattern!r} has the conversion !{piece.conversion}, which does not exist; "
                    f"write {{{piece.name}}}."
                )
            if piece.format and not _is_format(piece.format):
                raise UserError(
                    f"--caption-template {pattern!r} has the format :{piece.format}, which fits neither numbers nor "
                    f"words; write {{{piece.name}}} or a format such as {{{piece.name}:d}}."
                )
        self.names = names

    def fill(self, fields: Mapping[str, Any]) -> str:
        """Put fields into the pattern.

        Raises:
            CaptionError: One of them is missing, empty, or does not fit its format.
        """
        missing = [name for name in self.names if not as_words(fields.get(name))]
        if missing:
            raise CaptionError(f"no caption: the template wants {', '.join(missing)}")
        return "".join(
            piece.literal + ("" if piece.name is None else _shown(piece, fields[piece.name]))
            for piece in self._pieces
        )


def _is_format(format: str) -> bool:
    """Tell whether numbers or words can be written so; a width of thousands is nobody's wish."""
    if _WIDE_FORMAT.search(format) or "{" in format:
        return False
    return any(_formatted(value, format) is not None for value in (1, 1.5, "word"))


def _shown(piece: _Piece, value: Any) -> str:
    """Write a field as its place in the template wants it; a number may have come as text, as from a CSV."""
    words = as_words(value)
    if piece.conversion is not None:
        words = _CONVERSIONS[piece.conversion](words)
        candidates: list[Any] = [words]
    else:
        candidates = [*_numbers(value), words]
    if not piece.format:
        return words
    shown = next(filter(None, (_formatted(candidate, piece.format) for candidate in candidates)), None)
    if shown is None:
        raise CaptionError(
            f"no caption: {piece.name} {printable(words[:40])!r} does not fit {{{piece.name}:{piece.format}}} of the "
            "template"
        )
    return shown


def _numbers(value: Any) -> list[int | float]:
    """Read a value as a number, first as a whole one."""
    try:
        number = float(value)
        return [int(number), number] if number.is_integer() else [number]
    except (TypeError, ValueError, OverflowError):
        return []


def _formatted(value: Any, format_spec: str) -> str | None:
    try:
        return format(value, format_spec)
    except (TypeError, ValueError, OverflowError):
        return None


def describe(
    path: Path, listed: Mapping[str, Any], template: CaptionTemplate | None = None
) -> dict[str, Any]:
    """Collect the metadata of an audio file, with its caption as `text`.

    What the list says goes before the `.json` beside the file, that before the `.txt`, and that before the
    file's tags. A caption is what stands under `text`, `description` or `caption`; where none is filled in the
    template makes one, and without a template the tags for genre, mood, title and artist, or their comment.

    Args:
        path: The audio file.
        listed: Fields of its line in a list.
        template: For files without a caption of their own.

    Returns:
        JSON primitives; `text` is filled in.

    Raises:
        CaptionError: There is no caption, or it cannot be read.
    """
    own = _read_json(path)
    tags = _read_tags(path)
    fields = {**tags, **own, **listed}
    # of one source only: a caption in the list must not give way to a `text` beside the file
    for source in (listed, own):
        name = next((name for name in CAPTION_FIELDS if _is_filled_in(source.get(name))), None)
        if name is not None:
            text = source[name]
            if not isinstance(text, str):
                raise CaptionError(f"unreadable caption: {name} is a {type(text).__name__}, not a string")
            fields.pop(name)
            return _with_text(fields, text)
    written = _read_txt(path)
    if _is_filled_in(written):
        return _with_text(fields, str(written))
    if template is not None:
        return _with_text(fields, template.fill(fields))
    if "description" in tags:
        return _with_text(fields, str(fields.pop("description")))
    text = as_words([tags[name] for name in _CAPTION_OF_TAGS if name in tags]) or tags.get("comment", "")
    if text:
        return _with_text(fields, text)
    if listed or own or written is not None:
        raise CaptionError(f"no caption: none of {', '.join(CAPTION_FIELDS)} is filled in")
    raise CaptionError("no caption: no .json or .txt beside it, and no tags in it")


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


def _is_filled_in(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _read_json(path: Path) -> dict[str, Any]:
    """Read the `.json` beside an audio file; nothing if there is none, or an empty one."""
    sidecar, content = _beside(path, ".json")
    if sidecar is None or not content.strip():
        return {}
    try:
        record = load_json(content)
    except ValueError as error:
        raise CaptionError(f"unreadable caption: {sidecar.name}: {error}") from error
    if not isinstance(record, dict):
        raise CaptionError(f"unreadable caption: {sidecar.name} is no JSON object")
    return record


def _read_txt(path: Path) -> str | None:
    sidecar, content = _beside(path, ".txt")
    return None if sidecar is None else content


def _beside(path: Path, suffix: str) -> tuple[Path | None, str]:
    """Return the file of that suffix, in small or large letters, and its text."""
    spellings = (suffix, suffix.upper(), suffix.title())
    stem = os.path.splitext(path)[0]
    sidecar = next((stem + spelt for spelt in spellings if os.path.isfile(stem + spelt)), None)
    if sidecar is None:
        return None, ""
    try:
        return Path(sidecar), decode_text(Path(sidecar).read_bytes())
    except (OSError, ValueError) as error:
        raise CaptionError(f"unreadable caption: {Path(sidecar).name}: {error}") from error


def _read_tags(path: Path) -> dict[str, Any]:
    """Read ID3, Vorbis or RIFF tags; a file without any, or with broken ones, gives none."""
    from tinytag import TinyTag, TinyTagException

    try:
        found = TinyTag.get(path, duration=False).as_dict()
    except (TinyTagException, OSError, ValueError):
        return {}
    words = {ours: as_words(found.get(theirs)) for theirs, ours in _TAGS.items()}
    return {name: value for name, value in words.items() if value}
