"""Classifier-free guidance: a model and its texts as the `logits_fn` of the decoder.

Shapes: B clips, K codebooks, T frames, M queried frames, S text positions.

Source: arXiv 2401.04577, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magnet_train.models.attention import TextMemory, TextStates
from magnet_train.models.transformer import MagnetTransformer

Texts = Sequence[TextStates | TextMemory]  # for each layer


class GuidedLogits:
    """Logits with classifier-free guidance; the text is projected once for a whole generation.

    Args:
        lm: The model.
        text: float [B, S, text_dim], raw text-encoder states; None generates without a text.
        text_mask: bool [B, S], true where `text` holds a token.
        hide_padding: Hide the padding of texts also from a model that was trained with padding as keys.
        negative: The second half of the rows of `text` are negative captions, from which guidance leads away; by
            default it leads away from the prediction without a text.
    """

    def __init__(
        self,
        lm: MagnetTransformer,
        text: Tensor | None,
        text_mask: Tensor | None = None,
        hide_padding: bool = False,
        negative: bool = False,
    ) -> None:
        self.lm = lm
        self._texts: Texts | None = None
        if text is not None:
            with torch.no_grad():
                states = lm.read_text(text, text_mask, hide_padding)
                self._texts = [layer.cross_attention.prepare(states) for layer in lm.layers]  # type: ignore[union-attr,operator]
        self._guided = self._texts  # the texts of a guided step
        if negative and self._texts is not None:
            self._texts = [_first_half(text) for text in self._texts]

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        """Return guided logits float32 [B, T, card] of codebook `stage`.

        Args:
            tokens: int64 [B, K, T].
            stage: k.
            cfg_coef: 0 ignores the text (and takes the negative one), 1 takes the conditional prediction, more
                exaggerates it.
        """
        return self.at(tokens, stage, cfg_coef, None)

    def at(self, tokens: Tensor, stage: int, cfg_coef: float, frames: Tensor | None) -> Tensor:
        """Return guided logits float32 [B, M, card] of the frames int64 [B, M], or of all if None."""
        if self._texts is None or cfg_coef == 1.0:  # the prediction without a text has weight 0
            return self._predict(tokens, stage, frames, self._texts)
        # The rows without a text come second and skip cross-attention.
        tokens, frames = tokens.repeat(2, 1, 1), None if frames is None else frames.repeat(2, 1)
        conditional, null = self._predict(tokens, stage, frames, self._guided).chunk(2)
        return null + (conditional - null) * cfg_coef

    def _predict(self, tokens: Tensor, stage: int, frames: Tensor | None, texts: Texts | None) -> Tensor:
        hidden = self.lm.states(tokens, stage, texts, frames)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.lm.head(hidden, stage).float()


def _first_half(text: TextStates | TextMemory) -> TextStates | TextMemory:
    rows = len(text[0]) // 2
    return type(text)(*(None if part is None else part[:rows] for part in text))  # type: ignore[arg-type]
