"""Join a model and its texts into the callable that decoding asks for logits."""

from __future__ import annotations

import torch
from torch import Tensor

from magnet_train.models.transformer import MagnetTransformer


class GuidedLogits:
    """Classifier-free guidance: push the prediction away from the one without text.

    Args:
        lm: The model.
        text: float [B, S, text_dim], raw text-encoder states; None generates without a text.
        text_mask: bool [B, S], true where `text` holds a token.

    Source: arXiv 2401.04577, section 3.3.
    """

    def __init__(self, lm: MagnetTransformer, text: Tensor | None, text_mask: Tensor | None = None) -> None:
        self.lm = lm
        self.text: Tensor | None = None
        self.text_mask: Tensor | None = None
        if text is not None:
            present = torch.ones(text.shape[:2]) if text_mask is None else text_mask
            present = present.to(text.device, torch.bool)
            self.text = torch.cat([text, torch.zeros_like(text)])
            self.text_mask = torch.cat([present, torch.zeros_like(present)])

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        """Return guided logits of codebook `stage`.

        Args:
            tokens: int64 [B, K, T].
            stage: k.
            cfg_coef: 0 ignores the text, 1 takes the conditional prediction, more exaggerates it.

        Returns:
            float32 [B, T, card].
        """
        if self.text is None:
            return self.lm(tokens, stage).float()  # type: ignore[no-any-return]
        both = self.lm(torch.cat([tokens, tokens]), stage, self.text, self.text_mask).float()
        conditional, null = both.chunk(2)
        return null + (conditional - null) * cfg_coef  # type: ignore[no-any-return]
