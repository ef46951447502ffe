"""What all benchmarks share: numbers that are on disk as soon as they are there, and a check of options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write


class Report:
    """All numbers so far.

    Args:
        what: Which benchmark.
        machine: What runs it.
        path: JSON to write; None writes nothing.
        facts: What else is true of all numbers.
    """

    def __init__(self, what: str, machine: dict[str, Any], path: Path | None, **facts: Any) -> None:
        self.content: dict[str, Any] = {"what": what, "machine": machine, **facts, "cases": []}
        self._path = path

    @property
    def machine(self) -> dict[str, Any]:
        """Hardware and versions."""
        return self.content["machine"]  # type: ignore[no-any-return]

    @property
    def machine_line(self) -> str:
        """The same in a line."""
        return ", ".join(f"{name} {value}" for name, value in self.machine.items())

    def start_case(self, case: dict[str, Any]) -> None:
        """Add a case, to be filled in place."""
        self.content["cases"].append(case)

    def save(self) -> None:
        """Write the file anew, in one step.

        Raises:
            UserError: No room or no permission.
        """
        if self._path is not None:
            with atomic_write(self._path) as file:
                file.write(json.dumps(self.content, indent=1).encode() + b"\n")


def require_at_least(least: int, args: argparse.Namespace, names: Iterable[str]) -> None:
    """Require options, each number of those that take several, not to be smaller.

    Raises:
        UserError: Names the first that is.
    """
    for name in names:
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value < least:
                raise UserError(f"--{name.replace('_', '-')} {value} must be at least {least}.")
