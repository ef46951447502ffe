"""Captions made from fields: a template such as "{genre} with {instrument}", or one field of every file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

from magnet_train.errors import UserError
from magnet_train.storage.plain_text import printable

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


def as_words(value: Any) -> str:
    """Format a field as text: lists are joined by commas, None is empty."""
    if value is None:
        return ""
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        return ", ".join(filter(None, map(as_words, value)))
    return " ".join(str(value).split())
