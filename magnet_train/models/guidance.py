"""Join a model and its texts into the callable that decoding asks for logits.

Shapes: B clips, K codebooks, T frames, M frames that are asked for, S text positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magnet_train.models.attention import TextMemory
from magnet_train.models.receptive_field import Asked, ask
from magnet_train.models.text_memory import prepare
from magnet_train.models.transformer import MagnetTransformer


class GuidedLogits:
    """Classifier-free guidance: push the prediction away from the one without text.

    The text is read once, for the whole generation.

    Args:
        lm: The model.
        text: float [B, S, text_dim], raw text-encoder states; None generates without a text.
        text_mask: bool [B, S], true where `text` holds a token.
        hide_padding: Read each text as if alone, also by a model that was trained with padding as keys.

    Source: arXiv 2401.04577, section 3.3.
    """

    def __init__(
        self,
        lm: MagnetTransformer,
        text: Tensor | None,
        text_mask: Tensor | None = None,
        hide_padding: bool = False,
    ) -> None:
        self.lm = lm
        self._texts: Sequence[TextMemory] | None = None
        if text is not None:
            with torch.no_grad():
                states = lm.read_text(text, text_mask, hide_padding)
                self._texts = [prepare(states, layer.cross_attention) for layer in lm.layers]  # type: ignore[arg-type]

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        """Return guided logits of codebook `stage`.

        Args:
            tokens: int64 [B, K, T].
            stage: k.
            cfg_coef: 0 ignores the text, 1 takes the conditional prediction, more exaggerates it.

        Returns:
            float32 [B, T, card].
        """
        return self._logits(tokens, stage, cfg_coef, None)

    def at(self, tokens: Tensor, stage: int, cfg_coef: float, frames: Tensor) -> Tensor:
        """Return guided logits float32 [B, M, card] of the frames int64 [B, M] alone."""
        # Where a frame sees the whole clip, it makes no difference how near they are to each other.
        few = self.lm.span_len if self.lm.restricts(stage) else 0
        return self._logits(tokens, stage, cfg_coef, ask(frames, few))

    def _logits(self, tokens: Tensor, stage: int, cfg_coef: float, asked: Asked | None) -> Tensor:
        if self._texts is None or cfg_coef == 1.0:  # the prediction without text has no share in it
            return self._predict(tokens, stage, asked)
        # The rows without text come second and skip cross-attention.
        if asked is not None:
            asked = Asked(asked.frames.repeat(2, 1), asked.span)
        conditional, null = self._predict(tokens.repeat(2, 1, 1), stage, asked).chunk(2)
        return null + (conditional - null) * cfg_coef

    def _predict(self, tokens: Tensor, stage: int, asked: Asked | None) -> Tensor:
        return self.lm.head(self.lm.states(tokens, stage, self._texts, asked), stage).float()
