"""`report.jsonl`: audio files that gave no sample or only a part of one, with reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from magnet_train.storage.atomic_io import atomic_write

REPORT_NAME = "report.jsonl"


class Skipped(NamedTuple):
    """A file that gave no sample."""

    path: str
    reason: str  # a kind ("silent") and, after a colon, details


class Report(NamedTuple):
    """Contents of `report.jsonl`."""

    left_out: list[Skipped]  # files that gave no sample
    partial: list[Skipped]  # files that gave a sample of their readable part; marked with `kept` in the file


def summarize(left_out: Sequence[Skipped]) -> str:
    """Count the kinds of reasons: "2 silent, 1 unreadable"."""
    kinds = Counter(map(_kind, left_out))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def few_of(left_out: Sequence[Skipped], most: int = 5) -> list[Skipped]:
    """Choose examples: the first of each kind, then the first of all."""
    first_of_kind: dict[str, Skipped] = {}
    for file in left_out:
        first_of_kind.setdefault(_kind(file), file)
    return list(dict.fromkeys([*first_of_kind.values(), *left_out]))[:most]


def _kind(file: Skipped) -> str:
    return file.reason.partition(":")[0]


def write_report(folder: Path, report: Report) -> None:
    """Write one JSON object with path and reason for each file.

    Raises:
        UserError: No room or no permission.
    """
    records = [
        *(file._asdict() for file in report.left_out),
        *({**file._asdict(), "kept": True} for file in report.partial),
    ]
    with atomic_write(folder / REPORT_NAME) as file:
        for record in records:
            file.write(_json_line(record).encode())


def read_report(folder: Path) -> Report:
    """Read the file that `write_report` wrote."""
    report = Report([], [])
    with (folder / REPORT_NAME).open(encoding="utf-8", newline="\n") as lines:
        for record in map(json.loads, lines):
            kept = record.pop("kept", False)
            (report.partial if kept else report.left_out).append(Skipped(**record))
    return report


def printable(text: str) -> str:
    """Escape control characters, and the bytes of a path that are not UTF-8."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that was not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_line(record: dict[str, object]) -> str:
    """Return JSON that a terminal can show and any parser reads: lone surrogates are not JSON."""
    escaped = {
        name: "".join(_escape(c) if "\ud800" <= c <= "\udfff" else c for c in value)
        if isinstance(value, str)
        else value
        for name, value in record.items()
    }
    line = json.dumps(escaped, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line) + "\n"
