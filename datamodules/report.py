"""`report.jsonl`: files that gave no sample, with reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from magnet_train.whole_files import whole_file

REPORT_NAME = "report.jsonl"


class LeftOut(NamedTuple):
    """A file that gave no sample.

    Args:
        path: The file.
        reason: A kind ("silent") and, after a colon, details.
    """

    path: str
    reason: str


def summarize(left_out: Sequence[LeftOut]) -> str:
    """Count the kinds: "2 silent, 1 unreadable"."""
    kinds = Counter(map(_kind, left_out))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def few_of(left_out: Sequence[LeftOut], most: int = 5) -> list[LeftOut]:
    """Choose a few to show: the first of each kind, then whatever comes first."""
    first_of_kind: dict[str, LeftOut] = {}
    for file in left_out:
        first_of_kind.setdefault(_kind(file), file)
    return list(dict.fromkeys([*first_of_kind.values(), *left_out]))[:most]


def _kind(file: LeftOut) -> str:
    return file.reason.partition(":")[0]


def write_report(folder: Path, left_out: Sequence[LeftOut]) -> None:
    """Write one JSON object with path and reason for each file; empty if none was left out.

    Raises:
        UserError: No room or no permission.
    """
    lines = [json.dumps(file._asdict(), ensure_ascii=False) + "\n" for file in left_out]
    with whole_file(folder / REPORT_NAME) as file:
        file.write("".join(lines).encode("utf-8", "replace"))


def read_report(folder: Path) -> list[LeftOut]:
    """Read what `write_report` wrote."""
    with (folder / REPORT_NAME).open(encoding="utf-8") as lines:
        return [LeftOut(**json.loads(line)) for line in lines]
