"""Strict decoding of text and JSON written by people, and safe printing of it."""

from __future__ import annotations

import codecs
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Controls (ESC), formats (bidirectional overrides), lone surrogates, and separators of lines and paragraphs.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # formats that Persian, Hindi and emoji are spelt with
_LONGEST_QUOTE = 40  # characters in an error
_DEEPEST = 32  # levels of lists and objects: far from Python's limit of recursion


def decode_text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark; raises `ValueError` that names another encoding."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"it is in {name}; save it as UTF-8")
    if data.count(0) * 4 > len(data):  # every other byte of Latin letters
        raise ValueError("it is in UTF-16, or not text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} is not UTF-8, so it is in another encoding such as Latin-1; save it as UTF-8"
        ) from error


def read_text(path: str | Path, most_bytes: int = 2**28) -> str:
    """Read a file that a person wrote, as `decode_text` does; from a pipe or a device too, but never more than the limit.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger, or not in UTF-8.
    """
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return decode_text(data)


def lines_of(text: str) -> list[str]:
    r"""Split at \n or \r\n alone: a caption may contain U+2028 or U+0085."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def parse_json(text: str) -> Any:
    """Decode standard JSON; raises `ValueError` for NaN, Infinity, a name twice in an object, or deep nesting."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def load_json(text: str) -> Any:
    """Decode standard JSON whose values can be stored; raises `ValueError`, see `parse_json` and `unusable`."""
    value = parse_json(text)
    problem = unusable(value)
    if problem:
        raise ValueError(problem)
    return value


def unusable(value: Any) -> str | None:
    """Describe the first part of decoded JSON that cannot be stored: an infinite number, or text UTF-8 cannot encode."""
    stack = [value]  # without recursion, which a nested file could exhaust
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            stack += [*part, *part.values()]
        elif isinstance(part, list):
            stack += part
        elif isinstance(part, float) and not math.isfinite(part):
            return "it contains a number that is too large, such as 1e999"
        elif isinstance(part, str) and not is_text(part):
            return f"{printable(part[:_LONGEST_QUOTE])} contains half of a surrogate pair, which is not text"
    return None


def is_text(value: str) -> bool:
    """Return whether UTF-8 can encode a string, which may contain half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def printable(text: str) -> str:
    r"""Escape characters that a terminal would obey or hide, such as ESC as \x1b."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escape_hidden, text))


def few(names: Sequence[str], most: int = 3) -> str:
    """Join names with commas, the first `most` of them: "a, b, c and 2 more"."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _escape_hidden(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN or character in _JOINERS:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        duplicate = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{printable(duplicate[:_LONGEST_QUOTE])!r} occurs twice")
    return record


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def parse_object(data: bytes) -> dict[str, Any]:
    """Decode one JSON object whose values can be stored, from UTF-8.

    Raises:
        ValueError: Not UTF-8, not standard JSON, not an object, or nested deeper than 32 levels.
    """
    try:
        record = _DECODER.decode(data.decode())  # from text: guessing the encoding takes longer than the rest
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {_DEEPEST}") from error
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__}, not an object")
    if data.count(b"[") + data.count(b"{") > _DEEPEST and _depth_exceeds(record, _DEEPEST):
        raise ValueError(f"it is nested deeper than {_DEEPEST}")
    if b"\\ud" in data or b"\\uD" in data:
        problem = unusable(record)
        if problem:
            raise ValueError(problem)
    return record


def _depth_exceeds(record: dict[str, Any], limit: int) -> bool:
    level: list[Any] = [record]
    for _ in range(limit):
        children = (part.values() if isinstance(part, dict) else part for part in level)
        level = [child for group in children for child in group if isinstance(child, (dict, list))]
    return bool(level)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:_LONGEST_QUOTE]} is too large a number")
    return value


# one for all calls: `json.loads` makes a decoder for each call that has options
_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_float=_finite_float, parse_constant=_refuse_constant
)
