"""Summary of the input of `tokenize`: layout, source of the captions, examples, and what is not read."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from datamodules.tokenize.audio_files import AudioFile, Listing
from datamodules.tokenize.caption_rules import CaptionColumn, CaptionError, CaptionRule
from datamodules.tokenize.captions import (
    CAPTION_FIELDS,
    TEXTS,
    Described,
    find_caption,
    sidecar,
)
from magnet_train.audio.recording import require_audio_file
from magnet_train.cli.console import count
from magnet_train.errors import UserError
from magnet_train.storage.plain_text import few, printable

_EXAMPLES = 3
_TRIED = 20  # files searched for examples
_WIDTH = 80  # characters of a caption
_COLUMNS = 12  # listed


def summarize_sources(source: str, listing: Listing, template: CaptionRule | None) -> str:
    """Describe a listing in a few lines.

    Raises:
        UserError: The caption column is empty for most files, or the named one does not exist.
    """
    _require_captions(source, listing, template)
    usable = (file for file in listing.files if file.problem is None)
    tried = list(islice(usable, _TRIED))
    captioned = ((file, caption) for file in tried if (caption := _caption(file, template)) is not None)
    found = list(islice(captioned, _EXAMPLES))
    if isinstance(template, CaptionColumn) and tried and not found:
        raise UserError(
            f"{source} has no {printable(template.name)} in its first {count(len(tried), 'file')}; give --caption_from "
            f"one of {_names(listing) or 'the fields of the .json beside them, or their tags'}."
        )
    lines = [f"reading {printable(source)} as {listing.layout}: {count(len(listing.files), 'clip')}"]
    lines.append(f"captions: {_origins(listing, [caption for _, caption in found])}")
    for file, caption in found:
        text = caption.fields["text"]
        shown = text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
        lines.append(f"  {printable(file.name + file.segment)} -> {printable(shown)}")
    return "\n".join([*lines, *map(printable, listing.notes)])


def _caption(file: AudioFile, template: CaptionRule | None) -> Described | None:
    try:
        audio = file.source()
        require_audio_file(audio)  # before its tags are read: a pipe would block
        return find_caption(audio, file.fields, template, whole=file.is_whole)
    except (CaptionError, UserError):
        return None  # the report will say why


def _origins(listing: Listing, found: list[Described]) -> str:
    origins = list(dict.fromkeys(printable(caption.origin) for caption in found))
    for name in CAPTION_FIELDS:
        if f"column {name}" in origins:
            filled = sum(bool(str(file.fields.get(name, "")).strip()) for file in listing.files)
            share = "all" if filled == len(listing.files) else f"{filled} of {len(listing.files)}"
            origins[origins.index(f"column {name}")] += f" ({share})"
    if origins:
        return f"from {', '.join(origins)}"
    columns = _names(listing)
    advice = "name a column with --caption_from or use several in --caption_template"
    choices = f"; {advice}: {columns}" if columns else ""
    return f"none in the first {count(min(_TRIED, len(listing.files)), 'file')}{choices}"


def _names(listing: Listing) -> str:
    return printable(few(listing.columns, _COLUMNS))


def _require_captions(source: str, listing: Listing, template: CaptionRule | None) -> None:
    """Refuse a table whose caption column is mostly empty, unless an option says where captions come from."""
    column = next((name for name in CAPTION_FIELDS if name in listing.columns), None)
    if column is None or template is not None:
        return
    empty = [file for file in listing.files if file.problem is None and not _has_caption(file)]
    if len(empty) * 2 > len(listing.files):
        filled = Counter(name for file in empty for name in file.fields if name not in CAPTION_FIELDS)
        others = ", ".join(printable(name) for name, _ in filled.most_common(5))
        instead = f" ({others})" if others else ""
        raise UserError(
            f"{source}: column {column} is empty for {len(empty)} of {count(len(listing.files), 'clip')}; fill it in, or "
            f"give --caption_from {column} to leave these out, or another column{instead}."
        )


def _has_caption(file: AudioFile) -> bool:
    if any(str(file.fields.get(name, "")).strip() for name in CAPTION_FIELDS):
        return True
    return file.cell is None and any(sidecar(file.path, suffix) for suffix in (".json", *TEXTS))
