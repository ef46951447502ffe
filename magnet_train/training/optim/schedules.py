"""Learning rates by optimizer step, in closed form: a resumed run is where it would have been."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Rise from 0, then fall on half a cosine to 0.

    Args:
        optimizer: Whose learning rates to set.
        warmup_steps: Optimizer steps of the rise.
        max_steps: Optimizer step at which it is 0.

    Source: arXiv 2401.04577, section 4.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, max_steps: int) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return step / warmup_steps
            done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

        super().__init__(optimizer, factor)


class WarmupInverseSquareRoot(LambdaLR):
    """Rise from 0, then fall with the inverse square root of the step; it never reaches 0.

    Args:
        optimizer: Whose learning rates to set.
        warmup_steps: Optimizer steps of the rise.
        max_steps: Has no influence: a run may be made longer without changing what was.

    Source: the released audio-magnet configuration.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, max_steps: int) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return step / warmup_steps
            return math.sqrt(max(1, warmup_steps) / max(1, step))

        super().__init__(optimizer, factor)
