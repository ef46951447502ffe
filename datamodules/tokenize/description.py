"""`NAME.describe.json` beside an audio file: what `magnet-train describe` computed from it.

`tokenize` adds its `fields`, the reliable estimates, to the metadata of the clip. What a person wrote takes precedence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from magnet_train.storage.atomic_io import atomic_write
from magnet_train.storage.plain_text import load_json, read_text

SUFFIX = ".describe.json"
GENERATED_CAPTION = "generated_caption"  # the field with the words of an audio language model
_FORMAT = 1
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Description:
    """The contents of `NAME.describe.json`, as JSON primitives."""

    bytes: int  # size of the audio file
    modified_ns: int  # its time of modification
    fields: Mapping[str, Any]  # bpm, key, loudness, duration, tags, generated_caption
    # Estimates whose confidence is too low for `fields`.
    uncertain: Mapping[str, Any] = field(default_factory=dict)
    confidence: Mapping[str, Any] = field(default_factory=dict)  # of each estimate; of each tag
    seconds_heard: float | None = None  # length of the analysed part; None for the whole file
    tagged_with: str | None = None  # hash of the CLAP model and the list of tags
    captioned_with: str | None = None  # hash of the captioner and its prompt

    def is_of(self, audio: Path) -> bool:
        """Return whether the file is unchanged since it was described, by size and time; `OSError` if it is gone."""
        found = audio.stat()
        return (found.st_size, found.st_mtime_ns) == (self.bytes, self.modified_ns)


def description_path(audio: Path) -> Path:
    """Return the path of an audio file's description. It holds the whole name: `a.wav` and `a.mp3` have two."""
    return Path(f"{audio}{SUFFIX}")


def has_description(audio: Path) -> bool:
    """Return whether a description lies beside an audio file."""
    return os.path.isfile(description_path(audio))  # False for a name that is too long


def read_description(audio: Path) -> Description | None:
    """Read the description of an audio file, None if there is none.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or not a description.
    """
    if not has_description(audio):
        return None
    record = load_json(read_text(description_path(audio), _MOST_BYTES))
    if not isinstance(record, dict) or record.pop("format", None) != _FORMAT:
        raise ValueError(f"it has no format {_FORMAT} of `magnet-train describe`")
    kinds = {"bytes": int, "modified_ns": int, "fields": dict, "uncertain": dict, "confidence": dict}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{name} is not {'a whole number' if kind is int else 'an object'}")
    unknown = record.keys() - Description.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"it has the unknown key {min(unknown)}")
    return Description(**record)


def write_description(audio: Path, description: Description) -> None:
    """Write the description of an audio file whole; raises `UserError` if the folder cannot be written to."""
    record = {name: value for name, value in asdict(description).items() if value is not None}
    with atomic_write(description_path(audio)) as file:
        file.write(json.dumps({"format": _FORMAT, **record}, indent=1, ensure_ascii=False).encode() + b"\n")


def computed_fields(audio: Path) -> dict[str, Any]:
    """Return the fields that `tokenize` adds; {} without a description, or if the file has changed since.

    Sizes are compared and times are not, since a copy has another time.

    Raises:
        OSError, ValueError: As for `read_description`.
    """
    description = read_description(audio)
    if description is None or description.bytes != audio.stat().st_size:
        return {}
    return dict(description.fields)
