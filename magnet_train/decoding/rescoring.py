"""Rescoring: a second model helps to rank the spans that are masked again.

Shapes: B clips, K codebooks, T frames.

Source: arXiv 2401.04577, section 3.4 and figure 4.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from magnet_train.decoding.config import DecodingConfig, DecodingStep
from magnet_train.errors import UserError


class Rescorer(Protocol):
    """Probabilities of sampled tokens; called after each step but the last of a codebook."""

    def __call__(self, tokens: Tensor, stage: int) -> Tensor:
        """Return the probability float [B, T], 0..1, of the token of codebook `stage` at each frame.

        Args:
            tokens: int64 [B, K, T]. Codebook `stage` and those below are filled; those above hold the mask id, except
                for given tokens.
            stage: k.
        """


class Rescoring:
    """Mixes a rescorer's probabilities into the model's.

    The rescorer is not called where it cannot change anything: at weight 0, and after the last step of a codebook.

    Args:
        rescorer: None leaves the model's probabilities as they are.
        decoding: Has the weight of the rescorer.
        schedule: All steps.

    Raises:
        UserError: There is a rescorer, but the arrangement ranks nothing.
    """

    def __init__(
        self, rescorer: Rescorer | None, decoding: DecodingConfig, schedule: list[DecodingStep]
    ) -> None:
        if rescorer is not None and decoding.span_arrangement == "spread":
            raise UserError(
                'span_arrangement "spread" does not rank spans; choose another arrangement, or leave the rescorer out.'
            )
        self.rescorer = rescorer if decoding.rescorer_weight > 0 else None
        self.weight = decoding.rescorer_weight
        following = [*(step.stage for step in schedule[1:]), None]
        self.needed = [step.stage == stage for step, stage in zip(schedule, following, strict=True)]

    def mix(self, probs: Tensor, filled: Tensor, tokens: Tensor, stage: int, index: int) -> Tensor:
        """Return the probabilities float [B, T] that the spans are ranked by after step `index`.

        Args:
            probs: float [B, T], those of the model.
            filled: bool [B, T], frames whose token was sampled in this step; others keep their probability.
            tokens: int64 [B, K, T], with what was sampled.
            stage: k.
            index: Of the step, from 0.
        """
        if self.rescorer is None or not self.needed[index]:
            return probs
        second = self.rescorer(tokens, stage).to(probs.dtype)
        return probs.where(~filled, self.weight * second + (1 - self.weight) * probs)
