"""Stop signals (SIGTERM, SIGUSR1) of `fit`, recorded before torch is imported; standard library only."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
START_LIMIT = 60.0  # seconds
PREEMPTED = 75  # exit code: stopped by a signal and saved; EX_TEMPFAIL, "try again later", in sysexits.h


class StopRequest:
    """Record the last stop signal of this process; training reads it at points that all ranks reach together.

    The first such point is right before training begins. A process that does not reach it within `limit` seconds after
    a signal exits by itself: another rank may have been killed before it could record the signal.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the signal; 0 before one arrives
        self.limit = START_LIMIT
        self._previous: dict[signal.Signals, Any] = {}  # handlers
        self._timer: threading.Timer | None = None
        self._begun = False

    def listen(self, limit: float = START_LIMIT) -> bool:
        """Install the handlers; return False if they are installed already, or outside the main thread.

        After a signal the process exits in `limit` seconds if training does not begin; a single process gives 0.
        """
        if self._previous or threading.current_thread() is not threading.main_thread():
            return False
        self.received, self.limit, self._begun = 0, limit, False
        self._previous = {number: signal.signal(number, self._record) for number in SIGNALS}
        return True

    def begin(self) -> None:
        """End the time limit: from here on, training reads the signal."""
        self._begun = True
        if self._timer is not None:
            self._timer.cancel()

    def release(self) -> None:
        """Restore the handlers from before `listen`."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        first, self.received = not self.received, number
        if first and not self._begun:
            self._timer = threading.Timer(self.limit, self._exit)
            self._timer.daemon = True
            self._timer.start()

    def _exit(self) -> None:
        print(f"magnet-train: {before_training(self.received)}", file=sys.stderr, flush=True)
        os._exit(PREEMPTED)


def before_training(number: int) -> str:
    """Return the message for a signal before the first step."""
    name = signal.Signals(number).name
    return f"stopped by {name} before training began; start it again with --resume auto."


stop_request = StopRequest()
