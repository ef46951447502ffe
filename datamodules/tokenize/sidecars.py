"""Text files beside the audio: a caption, or the fields of Side-Step (`caption: ...`) or ai-toolkit (`<CAPTION>...`).

Side-Step also keeps caption and lyrics in two files, `.caption.txt` and `.lyrics.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

CAPTION, LYRICS, TEXT = ".caption.txt", ".lyrics.txt", ".txt"
_KEYS = {  # key in the file -> name in the metadata
    **{name: name for name in ("caption", "lyrics", "genre", "bpm", "key", "language", "duration", "repeat")},
    **{name: name for name in ("is_instrumental", "custom_tag", "prompt_override")},
    **{"keyscale": "key", "scale": "key", "tempo": "bpm", "lang": "language", "repeats": "repeat"},
    **{"signature": "time_signature", "timesignature": "time_signature", "time_signature": "time_signature"},
    **{"sig": "time_signature", "trigger": "custom_tag", "tags": "custom_tag"},
}
_TAGS = ("CAPTION", "LYRICS", "BPM", "KEYSCALE", "TIMESIGNATURE", "DURATION", "LANGUAGE")
_TAG = re.compile(rf"<({'|'.join(_TAGS)})>(.*?)(?=</?(?:{'|'.join(_TAGS)})>|\Z)", re.DOTALL | re.IGNORECASE)
_KEY = re.compile(r"\s*([A-Za-z_]+)\s*:(.*)")


def read_texts(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the fields in all text files beside a recording, with the caption as `caption`.

    A plain `.txt` beside a `.caption.txt` holds the lyrics, as in older folders of ACE-Step.

    Args:
        texts: Contents by suffix: `.txt`, `.caption.txt`, `.lyrics.txt`.
    """
    named = {"caption": texts.get(CAPTION, "").strip(), "lyrics": texts.get(LYRICS, "").strip()}
    named = {name: text for name, text in named.items() if text}
    fields = parse_sidecar(texts[TEXT]) if TEXT in texts else {}
    if "caption" in named and fields.keys() == {"caption"}:
        fields = {"lyrics": fields["caption"].strip()}
    return {**fields, **named}


def parse_sidecar(text: str) -> dict[str, str]:
    """Return the fields of a text, with its caption as `caption`; a text without keys or tags is the caption.

    Lyrics are the whole rest of the text after their key, with its line breaks.
    """
    fields = _tagged(text) if text.lstrip().startswith("<") else _keyed(text)
    if fields is None:
        return {"caption": text}
    return {name: value.strip() for name, value in fields.items() if value.strip()}


def _tagged(text: str) -> dict[str, str] | None:
    found = {_KEYS[tag.lower()]: value for tag, value in _TAG.findall(text)}
    return found if {"caption", "lyrics"} & set(found) else None


def _keyed(text: str) -> dict[str, str] | None:
    """Read lines of `key: value`; None where a sentence only happens to begin with a key."""
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        found = _KEY.fullmatch(line)
        key = _KEYS.get(found.group(1).lower()) if found else None
        if name == "lyrics":
            fields[name] += line + "\n"
        elif found and key:
            name, fields[key] = key, found.group(2) + "\n"
        elif name:
            fields[name] += line + "\n"
        elif line.strip() and not line.startswith("#"):
            return None
        if name and line.startswith("#") and name != "lyrics":  # a comment of Side-Step's example
            fields[name] = fields[name].removesuffix(line + "\n")
    return fields if {"caption", "lyrics"} & set(fields) or len(fields) > 1 else None
