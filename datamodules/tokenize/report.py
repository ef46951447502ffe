"""`report.jsonl`: audio files that gave no sample or only a part of one, with reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from magnet_train.storage.atomic_io import atomic_write
from magnet_train.storage.plain_text import is_text, printable

REPORT_NAME = "report.jsonl"


class Skipped(NamedTuple):
    """A file that gave no sample."""

    path: str
    reason: str  # a kind ("silent") and, after a colon, details


class Report(NamedTuple):
    """Contents of `report.jsonl`."""

    left_out: list[Skipped]  # files that gave no sample
    partial: list[Skipped]  # files of which only a part could be read; `kept` in the file


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
    """Write one JSON object with path and reason for each file; a UserError says why the disk refuses."""
    with atomic_write(folder / REPORT_NAME) as file:
        for skipped in report.left_out:
            file.write(_json_line(skipped._asdict()))
        for skipped in report.partial:
            file.write(_json_line({**skipped._asdict(), "kept": True}))


def read_report(folder: Path) -> Report:
    """Read the file that `write_report` wrote."""
    report = Report([], [])
    with (folder / REPORT_NAME).open(encoding="utf-8", newline="\n") as lines:
        for record in map(json.loads, lines):
            kept = record.pop("kept", False)
            (report.partial if kept else report.left_out).append(Skipped(**record))
    return report


def _json_line(record: dict[str, Any]) -> bytes:
    """Return JSON that a terminal can show and any parser reads: half of a surrogate pair is not JSON."""
    line = json.dumps(record, ensure_ascii=False)
    return ("".join(c if c.isprintable() else _escape(c) for c in line) + "\n").encode()


def _escape(character: str) -> str:
    return json.dumps(character if is_text(character) else printable(character))[1:-1]
