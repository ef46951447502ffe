"""Agree across ranks whether any of them received a stop signal, without waiting for the device."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from magnet_train.training.stop_request import stop_request


class SignalConsensus:
    """Agree across ranks, one poll late, on the stop signal that any of them received.

    The exchange runs on the CPU (gloo) beside the training and is read one poll later, so that a step waits
    for nothing. A single process answers at once. All ranks have to make their votes together.

    Args:
        timeout: Time without an answer after which the others are given up; torch's default when None.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        self._group: Any = None if alone else dist.new_group(timeout=timeout, backend="gloo")
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def poll(self) -> int:
        """Return the same signal number, or 0, on every rank; all ranks have to poll equally often."""
        if self._group is None:
            return stop_request.received
        answer = self._read()
        votes = torch.tensor([stop_request.received])
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = votes, work
        return answer

    def agree(self) -> int:
        """Return the same signal number, or 0, on every rank at once; wait for all of them."""
        answer = self.poll()
        return answer or self._read()

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
