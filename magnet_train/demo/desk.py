"""One job at a time: a device that makes two clips at once makes both late."""

from __future__ import annotations

import threading

from magnet_train.errors import UserError

LONGEST_QUEUE = 16  # jobs that wait or run; more would wait too long to be of use


class Stopped(Exception):  # noqa: N818  nothing went wrong
    """Whoever ordered the job wants it no more."""


class Ticket:
    """A place in the queue.

    Args:
        visitor: Whose it is.
    """

    def __init__(self, visitor: str) -> None:
        self.visitor = visitor
        self.stopped = False

    def check(self) -> None:
        """Raise `Stopped` if the job is to end; it asks this often."""
        if self.stopped:
            raise Stopped


class Desk:
    """A queue that tells each job how many come before it."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []
        self._moved = threading.Condition()

    def enter(self, visitor: str) -> Ticket:
        """Take the last place.

        Raises:
            UserError: The queue is full, or this visitor stands in it already.
        """
        with self._moved:
            if any(ticket.visitor == visitor for ticket in self._tickets):
                raise UserError("your last clips are still being made; wait for them or cancel them.")
            if len(self._tickets) >= LONGEST_QUEUE:
                raise UserError(f"{LONGEST_QUEUE} jobs wait already; try again in a few minutes.")
            self._tickets.append(Ticket(visitor))
            return self._tickets[-1]

    def before(self, ticket: Ticket) -> int:
        """Say how many jobs come before this one; 0 when it is its turn or it has left."""
        with self._moved:
            return self._tickets.index(ticket) if ticket in self._tickets else 0

    def wait_for_turn(self, ticket: Ticket) -> None:
        """Return when all before have left.

        Raises:
            Stopped: The job is wanted no more.
        """
        with self._moved:
            while self._tickets[0] is not ticket:
                ticket.check()
                self._moved.wait()
        ticket.check()

    def stop(self, ticket: Ticket) -> None:
        """Let a job end at its next `check`."""
        with self._moved:
            ticket.stopped = True
            self._moved.notify_all()

    def leave(self, ticket: Ticket) -> None:
        """Make room for the next."""
        with self._moved:
            self._tickets.remove(ticket)
            self._moved.notify_all()

    def stop_all(self, visitor: str | None = None) -> None:
        """Stop the jobs of a visitor, or everyone's."""
        with self._moved:
            for ticket in self._tickets:
                if visitor is None or ticket.visitor == visitor:
                    ticket.stopped = True
            self._moved.notify_all()
