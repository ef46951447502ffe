"""An audio spectrogram transformer (AST), which says what is to be heard.

Shapes: W windows, C classes (527 of AudioSet).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from magnet_train.evaluation.frechet import Floats
from magnet_train.evaluation.pretrained import Origin, load_pretrained

DEFAULT = "MIT/ast-finetuned-audioset-10-10-0.4593"
_FRAME_SECONDS = 0.025
_HOPS_PER_SECOND = 100


class AudioTagger:
    """A transformers ASTForAudioClassification in float32.

    Args:
        model: In evaluation mode.
        extractor: Its feature extractor.
        folder: Where it was loaded from.
        origin: Which model it is.
    """

    def __init__(self, model: Any, extractor: Any, folder: Path, origin: Origin) -> None:
        self.model, self.extractor, self.origin = model, extractor, origin
        self.sample_rate = int(extractor.sampling_rate)
        self.window_samples = int(extractor.max_length * self.sample_rate / _HOPS_PER_SECOND)
        self.classes = int(model.config.num_labels)
        self._shortest = round(_FRAME_SECONDS * self.sample_rate)

    @classmethod
    def from_pretrained(cls, name: str = DEFAULT, device: str = "cpu", what: str = "classifier") -> Self:
        """Load from a folder or a hub id.

        Args:
            name: Folder with config.json, weights and preprocessor_config.json, or hub id.
            device: Where to compute.
            what: What to call it in messages.

        Raises:
            UserError: Nothing readable is there, or the hub cannot be reached.
        """
        kind = "audio-spectrogram-transformer"
        return cls(*load_pretrained(ASTForAudioClassification, ASTFeatureExtractor, kind, name, what, device))

    @torch.no_grad()
    def probabilities(self, windows: Sequence[Tensor]) -> Floats:
        """Say how probable each class is, by a softmax over the logits.

        AST is trained with a sigmoid for each class, since several can be heard. The field's KL takes the
        softmax all the same, as the reference implementation does with PaSST: only that is a distribution.

        Args:
            windows: Mono audio at `sample_rate`, float32 [samples] each, 1 to `window_samples`.

        Returns:
            float64 [W, C], rows that add up to 1.

        Raises:
            ValueError: A window is longer, and would be cut.
        """
        if any(len(window) > self.window_samples for window in windows):
            raise ValueError(f"a window must have at most {self.window_samples} samples")
        audio = [F.pad(window, (0, max(0, self._shortest - len(window)))).numpy() for window in windows]
        features = self.extractor(audio, sampling_rate=self.sample_rate, return_tensors="np")
        spectrograms = torch.from_numpy(np.asarray(features["input_values"], dtype=np.float32))
        logits = self.model(spectrograms.to(self.model.device)).logits
        result: Floats = logits.double().softmax(dim=-1).cpu().numpy()
        return result
