"""Captions and metadata of an audio file: from its line in a list, a file beside it, and its tags."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.tokenize.caption_rules import CaptionColumn, CaptionError, CaptionRule, as_words
from datamodules.tokenize.description import computed_fields, description_path
from datamodules.tokenize.sidecars import CAPTION, LYRICS, TEXT, read_texts
from magnet_train.storage.file_source import FileSource, StoredBytes
from magnet_train.storage.plain_text import load_json, read_text

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
