"""Watch a model fill a clip: at which step each token was found for good.

Shapes: B clips, K codebooks, T frames, M frames that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magnet_train.decoding import LogitsAtFrames
from magnet_train.magnet import Magnet


class WatchedMagnet(Magnet):
    """A model that remembers how its last clip was filled; what it makes is the same."""

    order: Tensor | None = None
    """int64 [K, T] of the last generation's first clip: the step, from 1 on, after which a token stayed; 0 where
    it was given."""

    def logits_fn(self, texts: Sequence[str | None]) -> LogitsAtFrames:
        """Return what the decoder asks for logits, with eyes."""
        self.order = None
        return _Watching(self, super().logits_fn(texts))


class _Watching:
    """Look at the tokens of each call: what is masked in the last call that sees it masked is found there.

    Args:
        magnet: Whose `order` to fill.
        logits_fn: Whom to ask.
    """

    def __init__(self, magnet: WatchedMagnet, logits_fn: LogitsAtFrames) -> None:
        self.magnet, self.logits_fn = magnet, logits_fn
        self._calls = 0

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        """Return logits float [B, T, card] for tokens int64 [B, K, T]."""
        self._look(tokens, stage)
        return self.logits_fn(tokens, stage, cfg_coef)

    def at(self, tokens: Tensor, stage: int, cfg_coef: float, frames: Tensor) -> Tensor:
        """Return logits float [B, M, card] of the frames int64 [B, M]."""
        self._look(tokens, stage)
        return self.logits_fn.at(tokens, stage, cfg_coef, frames)

    def _look(self, tokens: Tensor, stage: int) -> None:
        self._calls += 1
        if self.magnet.order is None:
            self.magnet.order = torch.zeros(tokens.shape[1:], dtype=torch.int64)
        masked = (tokens[0, stage] == self.magnet.lm.mask_id).cpu()  # [T]
        self.magnet.order[stage, masked] = self._calls
