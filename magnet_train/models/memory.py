"""Batches that fit into the memory of a device: a batch that does not fit is halved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Of errors without a type of their own: allocators of a CPU, the CUDA runtime, cuBLAS and cuDNN.
_MESSAGES = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
MEMORY_ERRORS = (RuntimeError, MemoryError)  # what `is_full_memory` can hold of


def is_full_memory(error: BaseException) -> bool:
    """Return whether torch or Python ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


class FittingBatches:
    """Cut work into batches, and halve the batch size whenever memory does not suffice.

    Args:
        size: First batch size.
        items: Name of the items, in the plural.
        say: Called with a sentence without a full stop, once smaller batches fit.
        least: Smallest batch size.
    """

    def __init__(
        self, size: int, items: str, say: Callable[[str], None] = warnings.warn, least: int = 1
    ) -> None:
        self.size, self._items, self._say, self._least = size, items, say, least
        self._said = size

    def run(self, items: Sequence[_Item], work: Callable[[Sequence[_Item]], _Result]) -> Iterator[_Result]:
        """Yield the result of `work` for each batch, in order; raises torch's error if the smallest batch does not fit."""
        done = 0
        while done < len(items):
            batch = items[done : done + self.size]
            try:
                result = work(batch)
            except MEMORY_ERRORS as error:
                if len(batch) <= self._least or not is_full_memory(error):
                    raise
                self.size = (len(batch) + 1) // 2
                continue  # behind the handler, whose traceback holds the tensors of the attempt
            if self.size < self._said:
                self._say(
                    f"memory does not suffice for {self._said} {self._items} at once; continuing with {self.size}"
                )
                self._said = self.size
            yield result
            done += len(batch)
