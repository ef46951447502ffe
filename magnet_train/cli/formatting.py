"""Numbers as a person would say them, and as a command takes them."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """Make a `type` for whole numbers that are not smaller."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is not at least {least}")
        return number

    return read


def count(number: int, noun: str) -> str:
    """Write "1 clip", "2 clips"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write "12.5 s", "3.2 min" or "40.2 h"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(bytes: int) -> str:
    """Write "900 bytes", "12.5 kB", "3.2 MB" or "40.2 GB"."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if bytes >= limit:
            return f"{bytes / limit:.1f} {unit}"
    return f"{bytes} bytes"
