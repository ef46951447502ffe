"""Numbers with their nouns."""


def count(number: int, noun: str) -> str:
    """Write "1 clip", "2 clips"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
