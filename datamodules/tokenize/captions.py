"""Captions and metadata of an audio file: from its line in a list, a file beside it, and its tags."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from datamodules.tokenize.description import computed_fields, description_path
from datamodules.tokenize.sidecars import CAPTION, LYRICS, TEXT, read_texts
from magnet_train.errors import UserError
from magnet_train.storage.file_source import FileSource, StoredBytes
from magnet_train.storage.plain_text import load_json, printable, read_text

CAPTION_FIELDS = ("text", "description", "caption")
TEXTS = (TEXT, CAPTION, LYRICS)  # suffixes of text files beside the audio
_TAGS = {  # name in tinytag -> name in the metadata
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
_CAPTION_TAGS = ("genre", "moods", "title", "artist")  # joined to a caption; the comment if all are missing
_MOST_BYTES = 2**24  # of a sidecar
_WIDE_FORMAT = re.compile(r"\d{3}")
_CONVERSIONS: dict[str, Callable[[str], str]] = {"s": str, "r": repr, "a": ascii}


class CaptionError(ValueError):
    """A file has no caption; the message is a kind ("no caption") and, after a colon, details."""


class CaptionTemplate:
    """Make captions from fields, as in "{genre} with {instrument}" or "{bpm:d} bpm".

    Args:
        pattern: Text with names of fields in braces, each optionally with a Python format.

    Raises:
        UserError: It names no field, or cannot be parsed.
    """

    origin = "--caption_template"

    def __init__(self, pattern: str) -> None:
        where = f"--caption_template {pattern!r}"
        try:
            self._pieces = list(Formatter().parse(pattern))  # of text, field, format and conversion
        except ValueError as error:
            raise UserError(f"{where} cannot be parsed ({error}); close each brace.") from error
        self._names = [name for _, name, _, _ in self._pieces if name is not None]
        if not self._names or not all(name.isidentifier() for name in self._names):
            raise UserError(f"{where} names no field; write one like '{{genre}} with {{instrument}}'.")
        for _, name, format_spec, conversion in self._pieces:
            if conversion is not None and conversion not in _CONVERSIONS:
                raise UserError(f"{where} has the unknown conversion !{conversion}; write {{{name}}}.")
            if format_spec and not _is_format(format_spec):
                raise UserError(
                    f"{where} has the format :{format_spec}, which fits neither numbers nor words; write {{{name}}} or "
                    f"a format such as {{{name}:d}}."
                )

    def fill(self, fields: Mapping[str, Any]) -> str:
        """Insert fields into the pattern.

        Raises:
            CaptionError: A field is missing, empty, or does not fit its format.
        """
        missing = [name for name in self._names if not as_words(fields.get(name))]
        if missing:
            raise CaptionError(f"no caption: the template wants {', '.join(missing)}")
        text = ""
        for literal, name, format_spec, conversion in self._pieces:
            text += literal
            if name is not None:
                text += _fill_field(name, fields[name], format_spec, conversion)
        return text


def _is_format(format_spec: str) -> bool:
    """Return whether a number or a word can have this format; widths of 100 and more are refused."""
    if _WIDE_FORMAT.search(format_spec) or "{" in format_spec:
        return False
    return any(_format(value, format_spec) is not None for value in (1, 1.5, "word"))


def _fill_field(name: str, value: Any, format_spec: str | None, conversion: str | None) -> str:
    """Format a field for its place in the template; a number may be text, as in a CSV."""
    candidates = [*_numbers(value), as_words(value)]
    if conversion is not None:
        candidates = [_CONVERSIONS[conversion](as_words(value))]
    if not format_spec:
        return str(candidates[-1])
    formatted = next(filter(None, (_format(candidate, format_spec) for candidate in candidates)), None)
    if formatted is None:
        raise CaptionError(
            f"no caption: {name} {printable(str(candidates[-1])[:40])!r} does not fit {{{name}:{format_spec}}} of the "
            "template"
        )
    return formatted


def _numbers(value: Any) -> list[int | float | str]:
    """Return a value as numbers, a whole number first as an integer; empty if it is not a number."""
    try:
        number = float(value)
        return [int(number), number] if number.is_integer() else [number]
    except (TypeError, ValueError, OverflowError):
        return []


def _format(value: Any, format_spec: str) -> str | None:
    try:
        return format(value, format_spec)
    except (TypeError, ValueError, OverflowError):
        return None


class CaptionColumn:
    """Take captions from one field, whatever other caption fields a file has.

    Args:
        name: The field.
        template: Makes the caption of a file whose field is empty.
    """

    def __init__(self, name: str, template: CaptionTemplate | None = None) -> None:
        self.name, self._template = name, template
        self.origin = f"--caption_from {name}"

    def fill(self, fields: Mapping[str, Any]) -> str:
        """Return the field as text; raises `CaptionError` if it is missing or empty."""
        text = as_words(fields.get(self.name))
        if not text and self._template is not None:
            return self._template.fill(fields)
        if not text:
            raise CaptionError(f"no caption: {self.name} is empty")
        return text


CaptionRule = CaptionTemplate | CaptionColumn


class Described(NamedTuple):
    """The metadata of an audio file as JSON primitives."""

    fields: dict[str, Any]  # with the caption as `text`
    origin: str  # of the caption: "column caption", ".txt"


def describe(
    source: FileSource, listed: Mapping[str, Any], template: CaptionRule | None = None, *, whole: bool = True
) -> dict[str, Any]:
    """Collect the metadata of an audio file, with its caption as `text`; see `find_caption`."""
    return find_caption(source, listed, template, whole=whole).fields


def find_caption(
    source: FileSource, listed: Mapping[str, Any], template: CaptionRule | None = None, *, whole: bool = True
) -> Described:
    """Collect the metadata of an audio file and find its caption.

    Precedence of fields: `listed`, the `.json` beside the file, its text files, its tags, and last those of
    `magnet-train describe`, which hold for a `whole` file only. The caption is the first of `text`, `description` and
    `caption` that is filled in; a `CaptionColumn` names another field. Without a caption the template makes it, and
    without a template the tags genre, mood, title and artist, or the comment.

    Raises:
        CaptionError: There is no caption, or it cannot be read.
    """
    own = _read_beside(source, ".json", _json_object) or {}
    lyrics = read_texts(_read_texts(source, (LYRICS,)))  # also beside a .json with the caption
    tags = {**(_read_computed(source) if whole else {}), **_read_tags(source), **lyrics}
    is_chosen = isinstance(template, CaptionColumn)
    # one source at a time: a `text` beside the file must not replace a `caption` in the list
    for where, found in () if is_chosen else (("column ", listed), (".json: ", own)):
        name = next((name for name in CAPTION_FIELDS if _is_filled_in(found.get(name))), None)
        if name is not None:
            text = found[name]
            if not isinstance(text, str):
                raise CaptionError(f"unreadable caption: {name} is a {type(text).__name__}, not a string")
            return _described({**tags, **own, **listed}, text, where + name, without=name)
    texts = _read_texts(source, TEXTS)
    written = read_texts(texts)
    fields = {**tags, **written, **own, **listed}
    if not is_chosen and "caption" in written:
        origin = CAPTION if texts.get(CAPTION, "").strip() else TEXT
        return _described(fields, written["caption"], origin, without="caption")
    if template is not None:
        return _described(fields, template.fill(fields), template.origin)
    if "description" in tags:
        return _described(fields, str(tags["description"]), "tag description", without="description")
    names = [name for name in _CAPTION_TAGS if name in tags]
    if names := names or (["comment"] if "comment" in tags else []):
        return _described(fields, as_words([tags[name] for name in names]), f"tags {', '.join(names)}")
    if listed or own or texts:
        raise CaptionError(f"no caption: none of {', '.join(CAPTION_FIELDS)} is filled in")
    raise CaptionError("no caption: no .json or .txt beside it, and no tags in it")


def as_words(value: Any) -> str:
    """Format a field as text: lists are joined by commas, None is empty."""
    if value is None:
        return ""
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        return ", ".join(filter(None, map(as_words, value)))
    return " ".join(str(value).split())


def _described(fields: Mapping[str, Any], text: str, origin: str, without: str | None = None) -> Described:
    text = " ".join(text.split())
    if not text:
        raise CaptionError("no caption: it is blank")
    others = {name: value for name, value in fields.items() if name != without}
    return Described({**others, "text": text}, origin)


def _is_filled_in(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _json_object(content: str) -> dict[str, Any]:
    record = load_json(content) if content.strip() else {}
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


def sidecar(path: str | Path, suffix: str) -> Path | None:
    """Return the file beside `path` with that suffix, in lower or upper case; None if there is none."""
    stem = os.path.splitext(path)[0]
    spellings = (stem + spelling for spelling in (suffix, suffix.upper(), suffix.title()))
    return next(
        (Path(name) for name in spellings if os.path.isfile(name)), None
    )  # isfile: False for a name that is too long


def _read_beside(source: FileSource, suffix: str, parse: Callable[[str], Any]) -> Any:
    """Parse the sidecar of a file with that suffix; None without one, as for a file stored in a table."""
    beside = None if isinstance(source, StoredBytes) else sidecar(source, suffix)
    if beside is None:
        return None
    try:
        return parse(read_text(beside, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise CaptionError(f"unreadable caption: {beside.name}: {error}") from error


def _read_texts(source: FileSource, suffixes: Iterable[str]) -> dict[str, str]:
    """Read the text files beside a file, by suffix."""
    return {suffix: text for suffix in suffixes if (text := _read_beside(source, suffix, str)) is not None}


def _read_computed(source: FileSource) -> dict[str, Any]:
    """Read what `magnet-train describe` computed, without fields that would replace a caption."""
    if isinstance(source, StoredBytes):
        return {}
    path = Path(source)
    try:
        fields = computed_fields(path)
    except (OSError, ValueError) as error:
        raise CaptionError(f"unreadable caption: {description_path(path).name}: {error}") from error
    return {name: value for name, value in fields.items() if name not in CAPTION_FIELDS}


def _read_tags(source: FileSource) -> dict[str, Any]:
    """Read ID3, Vorbis or RIFF tags; empty if they are missing or damaged."""
    from tinytag import TinyTag, TinyTagException

    try:
        if isinstance(source, StoredBytes):
            found = TinyTag.get(file_obj=io.BytesIO(source.data), duration=False).as_dict()
        else:
            found = TinyTag.get(source, duration=False).as_dict()
    except (TinyTagException, OSError, ValueError):
        return {}
    words = {ours: as_words(found.get(theirs)) for theirs, ours in _TAGS.items()}
    return {name: value for name, value in words.items() if value}
