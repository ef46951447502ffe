"""Start and end of a clip in its file, from the fields of a row."""

from __future__ import annotations

import math
import re
from typing import Any

from magnet_train.errors import UserError

_STARTS = ("start", "start_s", "start_time")  # seconds
_ENDS = ("end", "end_s", "end_time")
_CLOCK = re.compile(r"[0-9]{1,6}(:[0-9]{1,2}){1,2}(\.[0-9]*)?")  # 0:30, 1:02:03.5

Times = tuple[float | None, float | None]  # start, end (s)


def take_times(record: dict[str, Any], where: str) -> Times:
    """Remove start and end of a clip from a row and return them, in seconds."""
    return _checked(_take(record, _STARTS, where), _take(record, _ENDS, where), where)


def take_offset(record: dict[str, Any], where: str) -> Times:
    """Remove `offset` and `duration` of a NeMo manifest from a row and return start and end, in seconds."""
    start, seconds = _take(record, ("offset",), where), _take(record, ("duration",), where)
    return _checked(start, None if seconds is None else (start or 0.0) + seconds, where)


def _take(record: dict[str, Any], names: tuple[str, ...], where: str) -> float | None:
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        return None
    try:
        return _seconds(record.pop(name))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: {name} is not a number of seconds; correct it.") from error


def _checked(start: float | None, end: float | None, where: str) -> Times:
    if (start or 0) < 0 or (end is not None and end <= (start or 0)):
        until = "the end" if end is None else f"{end:g} s"
        raise UserError(f"{where}: a clip cannot go from {start or 0:g} s to {until}; correct it.")
    return start, end


def _seconds(value: Any) -> float:
    """Parse a finite time in seconds: a number, or text as in a `.csv`, also as 1:02:03.5 or 0:30.

    Raises TypeError, ValueError or OverflowError without a message for anything else.
    """
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str) and ":" in value:
        if not _CLOCK.fullmatch(value.strip()):
            raise ValueError
        seconds, *others = (float(part) for part in value.split(":"))
        for part in others:
            seconds = seconds * 60 + part
        if max(others) >= 60:
            raise ValueError
        return seconds
    if isinstance(value, str) and "_" in value:  # Python would accept 1_000
        raise ValueError
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError
    return seconds
