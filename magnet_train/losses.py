"""The training objective: cross-entropy where the stage's codebook is masked and the clip has audio."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Add up the cross-entropy (nats) of the masked positions.

    The sum, not the mean: the caller divides by the masked count of the whole batch over all ranks, so that
    the loss does not depend on how the batch is cut.

    Args:
        logits: float [N, card], of the N masked positions.
        targets: int64 [N], ids 0..card-1.

    Returns:
        float32 scalar; 0 with a zero gradient when N is 0.

    Source: arXiv 2401.04577, section 3.1.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")
