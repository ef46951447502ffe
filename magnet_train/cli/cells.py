"""Text from files in the cells of tables."""

from __future__ import annotations

from rich import markup

from magnet_train.storage.plain_text import printable


def escape(text: str) -> str:
    """Show text as it is: neither rich's markup nor the terminal's control characters have their way."""
    return markup.escape(printable(text))
