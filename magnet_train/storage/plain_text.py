"""Read what a person wrote: text, lines and JSON, in whatever an editor left it; and show it without surprises."""

from __future__ import annotations

import codecs
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Categories of characters that are not shown as they are: controls (ESC), formats (bidirectional overrides), lone
# surrogates, and the separators of lines and paragraphs.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # formats that Persian, Hindi and emoji are spelt with
_LONGEST_SHOWN = 40


def decode_text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        ValueError: It is in another encoding; says which, as far as that shows, and what to do.
    """
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"it is in {name}; save it as UTF-8")
    if data.count(0) * 4 > len(data):  # every other byte of Latin letters
        raise ValueError("it is in UTF-16, or no text at all; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} is not UTF-8, so it is in another encoding such as Latin-1; save it as UTF-8"
        ) from error


def lines_of(text: str) -> list[str]:
    r"""Split at \n alone, since a caption may hold U+2028 or U+0085; a \r before it goes with it."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def parse_json(text: str) -> Any:
    """Decode JSON as its standard has it: no NaN, no Infinity, no name twice in one object.

    Raises:
        ValueError: It is no JSON, or nested too deep.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def load_json(text: str) -> Any:
    """Decode JSON whose values can be kept: as `parse_json`, and what `unusable` finds is refused.

    Raises:
        ValueError: As said.
    """
    value = parse_json(text)
    problem = unusable(value)
    if problem:
        raise ValueError(problem)
    return value


def unusable(value: Any) -> str | None:
    """Say which part of a decoded JSON value cannot be kept: a number too large, or text that UTF-8 cannot hold."""
    for part in _parts(value):
        if isinstance(part, float) and not math.isfinite(part):
            return "it holds a number too large to be one, such as 1e999"
        if isinstance(part, str) and not is_text(part):
            return f"{printable(part[:_LONGEST_SHOWN])} holds half of a surrogate pair, which is not text"
    return None


def is_text(value: str) -> bool:
    """Tell whether UTF-8 can hold it: half of a surrogate pair it cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def printable(text: str) -> str:
    r"""Escape what a terminal would obey or hide (ESC as \x1b), so that the text is seen and not acted upon."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if _is_hidden(character) else character for character in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _parts(value: Any) -> Iterator[Any]:
    """Yield names and values at all depths; without recursion, which a nested file could exhaust."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += [*part, *part.values()]
        elif isinstance(part, list):
            waiting += part
        else:
            yield part


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        double = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{printable(double[:_LONGEST_SHOWN])!r} stands there twice")
    return record


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def parse_object(data: bytes, deepest: int = 32) -> dict[str, Any]:
    """Decode one JSON object whose values can be kept, written and walked through again.

    Args:
        data: UTF-8.
        deepest: Lists and objects that may lie within each other; keeps recursion far from Python's limit.

    Raises:
        ValueError: Not UTF-8, not what `load_json` takes, not an object, or nested deeper.
    """
    try:
        record = _DECODER.decode(data.decode())  # from text: guessing the encoding takes longer than the rest
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {deepest}") from error
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__}, not an object")
    if data.count(b"[") + data.count(b"{") > deepest and _depth_exceeds(record, deepest):
        raise ValueError(f"it is nested deeper than {deepest}")
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
        raise ValueError(f"{digits[:_LONGEST_SHOWN]} is too large a number")
    return value


# one for all calls: `json.loads` makes a decoder for each call that has options
_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_doubles, parse_float=_finite_float, parse_constant=_refuse_constant
)
