"""CLAP, which puts sound and captions into one space.

Shapes: W windows, n captions, D dimensions (512).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from magnet_train.errors import UserError, first_line
from magnet_train.evaluation.frechet import Floats
from magnet_train.evaluation.pretrained import Origin, load_pretrained

DEFAULT = "laion/larger_clap_music"
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_LONGEST_CAPTION = 77  # tokens, as CLAP was trained and as the reference implementation measures


class Clap:
    """A transformers ClapModel in float32.

    Its feature extractor takes a random part of longer audio; windows are never longer, so nothing is random.

    Args:
        model: In evaluation mode.
        extractor: Its feature extractor.
        folder: Where its tokenizer lies.
        origin: Which model it is.
    """

    def __init__(self, model: Any, extractor: Any, folder: Path, origin: Origin) -> None:
        self.model, self.extractor, self.origin = model, extractor, origin
        self.sample_rate = int(extractor.sampling_rate)
        self.window_samples = int(extractor.nb_max_samples)
        self.dimensions = int(model.config.projection_dim)
        self._folder = folder

    @classmethod
    def from_pretrained(cls, name: str = DEFAULT, device: str = "cpu", what: str = "CLAP model") -> Self:
        """Load from a folder or a hub id.

        Args:
            name: Folder with config.json, weights, preprocessor_config.json and tokenizer, or hub id.
            device: Where to compute.
            what: What to call it in messages.

        Raises:
            UserError: Nothing readable is there, or the hub cannot be reached.
        """
        return cls(*load_pretrained(ClapModel, ClapFeatureExtractor, "clap", name, what, device))

    @torch.no_grad()
    def embed_audio(self, windows: Sequence[Tensor]) -> Floats:
        """Embed mono audio at `sample_rate`.

        Args:
            windows: float32 [samples] each, 1 to `window_samples`; short ones are filled up as the model was
                trained, by repetition.

        Returns:
            float64 [W, D], rows of unit length.

        Raises:
            ValueError: A window is longer, and would be cut at random.
        """
        if any(len(window) > self.window_samples for window in windows):
            raise ValueError(f"a window must have at most {self.window_samples} samples")
        audio = [window.double().numpy() for window in windows]
        features = self.extractor(audio, sampling_rate=self.sample_rate, return_tensors="np")
        spectrograms = torch.from_numpy(np.asarray(features["input_features"], dtype=np.float32))
        # the extractor would call one of them longer, at random, for models that fuse parts of long audio
        whole = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.model.device)
        output = self.model.get_audio_features(spectrograms.to(self.model.device), is_longer=whole)
        return _float64(output.pooler_output)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str], batch_size: int = 16) -> Floats:
        """Embed captions, cut at 77 tokens.

        Returns:
            float64 [n, D], rows of unit length.

        Raises:
            UserError: The model's folder has no tokenizer.
        """
        tokenizer = self._tokenizer()
        rows = [np.empty((0, self.dimensions))]
        for first in range(0, len(captions), batch_size):
            tokens = tokenizer(
                list(captions[first : first + batch_size]),
                padding=True,
                truncation=True,
                max_length=_LONGEST_CAPTION,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            rows.append(_float64(output.pooler_output))
        return np.concatenate(rows)

    def _tokenizer(self) -> Any:
        try:
            # without any file transformers would make up a tokenizer that knows no word
            if not any((self._folder / name).is_file() for name in _VOCABULARIES):
                raise OSError(f"there is none of {', '.join(_VOCABULARIES)}")
            tokenizer = AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)
            known = int(self.model.config.text_config.vocab_size)
            if len(tokenizer) > known:
                raise ValueError(f"it has {len(tokenizer)} tokens and the model knows {known}")
        except Exception as error:  # transformers raises many kinds here
            raise UserError(
                f"CLAP model {self.origin.id} has no usable tokenizer ({first_line(error)}); save its own beside "
                "its weights."
            ) from error
        return tokenizer


def _float64(embeddings: Tensor) -> Floats:
    array: Floats = torch.nn.functional.normalize(embeddings.double(), dim=-1).cpu().numpy()
    return array
