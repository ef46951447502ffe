"""What the page's buttons do, without the page: one job at a time, and news of it for whoever ordered it."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from magnet_train.demo.desk import Desk, Stopped, Ticket
from magnet_train.demo.job import Job, Update, as_sentence
from magnet_train.demo.order import Order, Source
from magnet_train.demo.watching import WatchedMagnet
from magnet_train.errors import UserError

REFRESH_SECONDS = 0.2  # between two looks at a job

_log = logging.getLogger(__name__)


class Studio:
    """A model, and a queue of jobs for it.

    Args:
        magnet: The model.
        source: How the command line names it.
    """

    def __init__(self, magnet: WatchedMagnet, source: Source) -> None:
        self.magnet = magnet
        self.source = source
        self._desk = Desk()

    def make(self, order: Order, visitor: str) -> Iterator[Update]:
        """Make clips.

        Args:
            order: What is wanted.
            visitor: By whom; `cancel` takes the same name.

        Yields:
            How far it is, a few times a second, at last with a state that says how it ended. What a visitor
            can mend is such a message too. Files are gone once the next update is asked for after the last.
        """
        try:
            order.check()
            order.decoding.check(self.magnet.lm.n_q, self.magnet.lm.card)
            ticket = self._desk.enter(visitor)
        except UserError as error:
            yield Update("failed", as_sentence(error))
            return
        with tempfile.TemporaryDirectory(prefix="magnet-train-job-") as folder:
            job = Job(self.magnet, self.source, order, Path(folder))
            thread = threading.Thread(target=self._run, args=(job, ticket), daemon=True)
            thread.start()
            try:
                yield from self._watch(job, ticket, thread)
            finally:  # also when nobody listens any more
                self._desk.stop(ticket)
                thread.join()

    def _run(self, job: Job, ticket: Ticket) -> None:
        """Do a job when its turn has come; how it ends is its last update."""
        try:
            self._desk.wait_for_turn(ticket)
            job.run(ticket.check)
        except Stopped:
            job.tell("stopped", "Cancelled.")
        except UserError as error:
            job.tell("failed", as_sentence(error))
        except torch.OutOfMemoryError:
            job.tell(
                "failed", "The device has no memory left for this; make a shorter clip, or ask for it later."
            )
        except Exception as error:
            _log.exception("a job of the demo failed")
            job.tell(
                "failed",
                f"This went wrong and is not your fault ({type(error).__name__}); the terminal in which "
                "magnet-train demo runs says more.",
            )
        finally:
            self._desk.leave(ticket)

    def _watch(self, job: Job, ticket: Ticket, thread: threading.Thread) -> Iterator[Update]:
        told: Update | None = None
        while True:
            ended = not thread.is_alive()  # asked first, so that the last update is not missed
            before = self._desk.before(ticket)
            update = Update("waiting", _queue_message(before)) if before else job.update
            if update != told:
                yield update
                told = update
            if ended:
                return
            thread.join(REFRESH_SECONDS)

    def cancel(self, visitor: str) -> None:
        """Stop a visitor's job after the step at work."""
        self._desk.stop_all(visitor)

    def close(self) -> None:
        """Stop everything."""
        self._desk.stop_all()


def _queue_message(before: int) -> str:
    others = "1 job comes" if before == 1 else f"{before} jobs come"
    return f"{others} before yours; it starts by itself."
