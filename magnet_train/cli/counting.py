"""Numbers as a person would say them."""


def count(number: int, noun: str) -> str:
    """Write "1 clip", "2 clips"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write "12.5 s", "3.2 min" or "40.2 h"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
