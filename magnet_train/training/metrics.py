"""Loss and accuracy of the masked tokens, by codebook and by how much of the clip was masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from magnet_train.training.objective import StagePrediction

RATE_BUCKETS = 4  # quarters of the mask rate


class MaskedTokenMetrics(Metric):
    """Loss and accuracy of masked tokens, summed over batches and ranks.

    The numbers are also kept by mask rate: decoding begins with nearly everything masked and ends with nearly nothing,
    which a mean over all tokens hides.
    """

    full_state_update = False
    sums: Tensor  # float32 [K, RATE_BUCKETS, 3]: loss in nats, correct predictions, tokens

    def __init__(self, n_q: int) -> None:
        super().__init__()
        self.n_q = n_q
        self.add_state("sums", torch.zeros(n_q, RATE_BUCKETS, 3), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[..., Tensor], exclude_state: Sequence[str] = ()) -> Self:
        """Move to the device of the model, but stay in float32: in 16 bits, sums stop growing at 256 or 2,048."""
        super()._apply(fn, exclude_state)
        self.sums = self.sums.float()
        self._defaults["sums"] = self._defaults["sums"].float()  # type: ignore[union-attr]
        return self

    def update(self, prediction: StagePrediction, rate: Tensor) -> None:
        """Add the predictions of a codebook.

        Args:
            prediction: Of `predict_masked`.
            rate: float [B], share of each clip's frames that was masked, 0..1.
        """
        logits, targets = prediction.logits.float(), prediction.targets
        loss = F.cross_entropy(logits, targets, reduction="none")
        right = logits.argmax(dim=-1) == targets
        values = torch.stack([loss, right, torch.ones_like(loss)], dim=-1)  # [N, 3]
        bucket = (rate * RATE_BUCKETS).long().clamp(max=RATE_BUCKETS - 1)
        # Summed by batch first: float32 stops counting single tokens at 16 million.
        batch = torch.zeros_like(self.sums[0]).index_add_(0, bucket[prediction.clips], values)
        self.sums[prediction.stage] += batch

    def compute(self) -> dict[str, Tensor]:
        """Return means by name; `loss` is the mean of the codebooks' losses, and means over no token are left out.

        Returns:
            `loss`, `loss_codebook_k`, `perplexity_codebook_k`, `accuracy_codebook_k`, and for each quarter of
            the mask rate `by_rate/loss_codebook_k_masked_25_50` and the like (per cent).
        """
        numbers: dict[str, Tensor] = {}
        quarter = 100 // RATE_BUCKETS
        for k in range(self.n_q):
            numbers |= _means(self.sums[k].sum(dim=0), f"codebook_{k}")
            for bucket in range(RATE_BUCKETS):
                where = f"codebook_{k}_masked_{bucket * quarter}_{(bucket + 1) * quarter}"
                numbers |= _means(self.sums[k, bucket], where, "by_rate/")
        losses = [numbers[f"loss_codebook_{k}"] for k in range(self.n_q) if f"loss_codebook_{k}" in numbers]
        return numbers | ({"loss": torch.stack(losses).mean()} if losses else {})


def _means(sums: Tensor, name: str, prefix: str = "") -> dict[str, Tensor]:
    loss, right, count = sums
    if count == 0:
        return {}
    mean = loss / count
    return {
        f"{prefix}loss_{name}": mean.float(),
        f"{prefix}perplexity_{name}": mean.exp().float(),
        f"{prefix}accuracy_{name}": (right / count).float(),
    }
