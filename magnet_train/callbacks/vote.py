"""Let every rank learn that one of them was asked to stop, without waiting for the device."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class StopVote:
    """Tell all ranks, at the same poll, which signal any of them had received before the poll before.

    The exchange runs on the CPU (gloo) beside the training and is read one poll later, so that a step waits
    for nothing. A single process answers at once. All ranks have to make their votes together.

    Args:
        timeout: Time without an answer after which the others are given up; torch's default when None.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self.received = 0  # number of the signal; 0 is none
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        self._group: Any = None if alone else dist.new_group(timeout=timeout, backend="gloo")
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def poll(self) -> int:
        """Return the same signal number, or 0, on every rank; all ranks have to poll equally often."""
        if self._group is None:
            return self.received
        answer = self._read()
        votes = torch.tensor([self.received])
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = votes, work
        return answer

    def close(self) -> None:
        """Finish the exchange that is under way."""
        self._read()

    def _read(self) -> int:
        if self._pending is None:
            return 0
        votes, work = self._pending
        self._pending = None
        work.wait()
        return int(votes.item())
