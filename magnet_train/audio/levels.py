"""How loud a file is, and whether its floats are integers in disguise.

Samples: float32 [samples, channels].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LARGEST_FLOAT = 32.0  # 30 dB above full scale; no recording is so loud, and integers are
_INTEGER_BITS = (8, 16, 24, 32)


class Levels:
    """What is known of the samples seen so far."""

    def __init__(self) -> None:
        self.peak = 0.0  # of floats alone
        self._lowest: npt.NDArray[np.float32] | None = None
        self._highest: npt.NDArray[np.float32] | None = None
        self._swing = 0.0
        self._integers = True

    def add(self, samples: npt.NDArray[np.float32], floats: bool) -> None:
        """Take a block into account.

        Args:
            samples: At full scale -1..1, unless they are floats at the wrong one.
            floats: Whether the file holds floats.
        """
        low, high = samples.min(axis=0), samples.max(axis=0)
        if self._lowest is not None and self._highest is not None and len(self._lowest) == len(low):
            low, high = np.minimum(low, self._lowest), np.maximum(high, self._highest)
        self._lowest, self._highest = low, high
        self._swing = max(self._swing, float((high.astype(np.float64) - low).max()))
        if floats:
            self.peak = max(self.peak, float(np.abs(low).max()), float(np.abs(high).max()))
            self._integers = self._integers and bool((samples == np.rint(samples)).all())

    @property
    def swing(self) -> float:
        """Distance of the lowest from the highest sample of a channel."""
        return self._swing

    @property
    def looks_like_integers(self) -> bool:
        """Whether all floats are whole numbers and some are not 0, 1 or -1."""
        return self._integers and self.peak > 1

    @property
    def bits(self) -> int | None:
        """Bits of the smallest integers that hold the floats; None if they are beyond all."""
        return next((bits for bits in _INTEGER_BITS if self.peak <= 2 ** (bits - 1)), None)
