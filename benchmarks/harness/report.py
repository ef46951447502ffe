"""The JSON report of a benchmark, its tables, and a check of options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write


class Report:
    """All numbers so far, written to disk after each of them.

    Args:
        what: Which benchmark.
        machine: Hardware and versions.
        path: JSON to write; None writes nothing.
        facts: Further top-level entries.
    """

    def __init__(self, what: str, machine: dict[str, Any], path: Path | None, **facts: Any) -> None:
        self.content: dict[str, Any] = {"what": what, "machine": machine, **facts, "cases": []}
        self._path = path

    def print_machine(self, console: Console) -> None:
        """Print hardware and versions in one line."""
        facts = self.content["machine"].items()
        console.print(", ".join(f"{name} {value}" for name, value in facts), highlight=False)

    def start_case(self, case: dict[str, Any]) -> None:
        """Add a case, to be filled in place."""
        self.content["cases"].append(case)

    def save(self) -> None:
        """Replace the file atomically.

        Raises:
            UserError: The disk is full or the folder cannot be written to.
        """
        if self._path is not None:
            with atomic_write(self._path) as file:
                file.write(json.dumps(self.content, indent=1).encode() + b"\n")


def make_table(title: str, first: str, *columns: str) -> Table:
    """Make a table whose first column is text and the others numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def require_at_least(least: int, args: argparse.Namespace, names: Iterable[str]) -> None:
    """Require a minimum of options, and of each number of those that take several.

    Raises:
        UserError: Names the first option below it.
    """
    for name in names:
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value < least:
                raise UserError(f"--{name.replace('_', '-')} {value} must be at least {least}.")
