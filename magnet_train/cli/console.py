"""What commands print: numbers with units, text from files, tables and progress bars."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Self, TypeVar

from rich import box, markup
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from magnet_train.errors import UserError
from magnet_train.storage.plain_text import printable

_T = TypeVar("_T")


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


def escape(text: str) -> str:
    """Escape both rich's markup and the terminal's control characters, so that text is shown as it is."""
    return markup.escape(printable(text))


def table(
    title: str | None, *columns: str, right: Collection[str] = (), style: box.Box = box.HEAVY_HEAD
) -> Table:
    """Return an empty table, without a header if no column has a name.

    Args:
        title: In rich's markup, as all text of a table.
        columns: Their names.
        right: Those aligned to the right.
        style: The lines around cells.
    """
    empty = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns), box=style)
    for column in columns:
        empty.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return empty


class ProgressBar:
    """A bar on stderr with counts, rate and time left; appears with the first update.

    Args:
        what: The activity, in front of the bar.
        unit: What is counted, in the plural.
        total: How many there are, if known.
        transient: Remove the bar at the end, as happens before a `UserError` in any case.
        hidden: Show nothing.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: float | None = None,
        *,
        transient: bool = False,
        hidden: bool = False,
    ) -> None:
        self.hidden, self._unit = hidden, unit
        columns = (
            TextColumn(what, markup=False),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=transient, disable=hidden)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, UserError):
            self._bar.live.transient = True  # the sentence that follows is enough
        self.stop()

    def stop(self) -> None:
        """End the bar, if it has appeared."""
        if self._bar.live.is_started:
            self._bar.stop()

    @property
    def text(self) -> str:
        """What stands behind the bar."""
        return self._bar.tasks[0].description

    def update(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Move the bar.

        Args:
            done: How many there are by now.
            total: How many there will be; as before when None.
            text: To show behind the bar instead of counts, rate and time left.
        """
        self._bar.start()
        self._bar.update(self._task, completed=done, total=total)
        self._bar.update(self._task, description=self._counts() if text is None else text)

    def advance(self) -> None:
        """Count one more."""
        self.update(self._bar.tasks[0].completed + 1)

    def _counts(self) -> str:
        task = self._bar.tasks[0]
        total = "?" if task.total is None else f"{task.total:g}"
        rate = "" if task.speed is None else f", {task.speed:.1f}/s"
        seconds = None if task.finished else task.time_remaining
        left = "" if seconds is None else f", {duration(seconds)} left"
        return f"{task.completed:g}/{total} {self._unit}{rate}{left}"


def track(items: Collection[_T], what: str, unit: str) -> Iterator[_T]:
    """Yield items with a bar that goes away at the end."""
    with ProgressBar(what, unit, len(items), transient=True) as bar:
        for item in items:
            yield item
            bar.advance()
