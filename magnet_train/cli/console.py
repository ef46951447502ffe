"""Terminal output: numbers with units, text from files, tables and progress bars; and a handler of SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from rich import markup
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


def escape(text: str) -> str:
    """Escape rich's markup and the terminal's control characters."""
    return markup.escape(printable(text))


def table(title: str | None, *columns: str, right: Collection[str] = ()) -> Table:
    """Return an empty table for text in rich's markup; columns named in `right` are aligned to the right."""
    empty = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for column in columns:
        empty.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return empty


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Return a table of names and texts, which are shown as they are."""
    filled = table(escape(title), "", "")
    for name, text in facts.items():
        filled.add_row(escape(name), escape(text))
    return filled


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
        self, what: str, unit: str, total: float | None = None, transient: bool = False, hidden: bool = False
    ) -> None:
        self.hidden, self._unit = hidden, unit
        text = "{task.description}"
        columns = (TextColumn(what, markup=False), BarColumn(), TextColumn(text, markup=False))
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

    def update(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Move the bar; `total` stays as it was when None, and `text` replaces counts, rate and time left."""
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


@contextmanager
def on_signal(
    number: signal.Signals, handler: Callable[[int, Any], None] | signal.Handlers
) -> Iterator[None]:
    """Handle a signal within the block, if this is the main thread."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(number, handler) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(number, before)
