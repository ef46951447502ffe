"""Let a second model have a say in which spans are masked again.

Shapes: B clips, K codebooks, T frames.

Source: arXiv 2401.04577, section 3.4 and figure 4.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from magnet_train.decoding.config import DecodingConfig, DecodingStep
from magnet_train.errors import UserError


class Rescorer(Protocol):
    """Says how probable tokens are that were sampled already."""

    def __call__(self, tokens: Tensor, stage: int) -> Tensor:
        """Judge the tokens of codebook `stage`.

        Args:
            tokens: int64 [B, K, T]. Codebook `stage` and those below it are filled; those above hold the mask
                id, except where they were given.
            stage: k.

        Returns:
            float [B, T], probability of the token of codebook k at each frame, 0..1.
        """


class Rescoring:
    """Mixes a rescorer's probabilities into the model's, where that can change anything.

    Args:
        rescorer: None leaves the model's probabilities as they are.
        decoding: Has the weight of the rescorer. At 0 it is not asked at all.
        schedule: All steps; after the last one of a codebook nothing is masked again, so it is not asked.

    Raises:
        UserError: There is a rescorer and nothing is ranked.
    """

    def __init__(
        self, rescorer: Rescorer | None, decoding: DecodingConfig, schedule: list[DecodingStep]
    ) -> None:
        if rescorer is not None and decoding.span_arrangement == "spread":
            raise UserError(
                'span_arrangement "spread" ranks nothing, so that a rescorer has no say; choose another or leave it out.'
            )
        self.rescorer = rescorer if decoding.rescorer_weight > 0 else None
        self.weight = decoding.rescorer_weight
        following = [*(step.stage for step in schedule[1:]), None]
        self.needed = [step.stage == stage for step, stage in zip(schedule, following, strict=True)]

    def mix(self, probs: Tensor, filled: Tensor, tokens: Tensor, stage: int, index: int) -> Tensor:
        """Return the probabilities float [B, T] that the spans are ranked by after step `index`.

        Args:
            probs: float [B, T], those of the model.
            filled: bool [B, T], frames whose token was sampled in this step; others keep what they have.
            tokens: int64 [B, K, T], with what was sampled.
            stage: k.
            index: Of the step, from 0.
        """
        if self.rescorer is None or not self.needed[index]:
            return probs
        second = self.rescorer(tokens, stage).to(probs.dtype)
        return probs.where(~filled, self.weight * second + (1 - self.weight) * probs)
