"""Record SIGTERM and SIGUSR1 from the first moment of `fit`, before torch is imported. Only the standard library."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
START_LIMIT = 60.0  # seconds
PREEMPTED = 75  # exit code; sysexits' "try again later": stopped by a signal, saved, `--resume auto` goes on


class StopRequest:
    """The signal that asked this process to stop, and no more: training looks at it where all ranks can agree.

    The first such moment is just before training begins. A process that does not get there within `limit`
    seconds after a signal leaves by itself: at once if no other one waits for it, else after `START_LIMIT`
    (another rank was killed before it could catch the signal, say).
    """

    def __init__(self) -> None:
        self.received = 0  # number of the signal; 0 is none
        self.limit = START_LIMIT
        self._before: dict[signal.Signals, Any] = {}
        self._timer: threading.Timer | None = None
        self._begun = False

    def listen(self, limit: float = START_LIMIT) -> bool:
        """Record the signals from now on.

        Args:
            limit: Seconds from a signal until the process leaves, if training does not begin.

        Returns:
            Whether this call changed anything: False if they are recorded already or this is no main thread.
        """
        if self._before or threading.current_thread() is not threading.main_thread():
            return False
        self.received, self.limit, self._begun = 0, limit, False
        self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
        return True

    def begin(self) -> None:
        """Lift the time limit: from here on training looks at the request itself."""
        self._begun = True
        if self._timer is not None:
            self._timer.cancel()

    def release(self) -> None:
        """Restore the handlers that were there before `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        first, self.received = not self.received, number
        if first and not self._begun:
            self._timer = threading.Timer(self.limit, self._leave)
            self._timer.daemon = True
            self._timer.start()

    def _leave(self) -> None:
        print(f"magnet-train: {before_training(self.received)}", file=sys.stderr, flush=True)
        os._exit(PREEMPTED)


def before_training(number: int) -> str:
    """Say that a signal came before the first step."""
    return (
        f"stopped by {signal.Signals(number).name} before training began; start it again with --resume auto."
    )


stop_request = StopRequest()
