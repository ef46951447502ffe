"""The pretrained models of evaluation.

CLAP embeds audio and captions, an audio spectrogram transformer (AST) tags audio. Both are loaded from a folder or the
hub: no pickle, no remote code, no missing weights. Transformers is imported when a model is loaded.
Shapes: W windows of mono audio, n captions, D dimensions of CLAP (512), C classes (527 of AudioSet).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from magnet_train.errors import UserError, first_line
from magnet_train.evaluation.measures import Floats
from magnet_train.storage.hub import find_folder, load_pretrained, revision_of

CLAP = "laion/larger_clap_music"
CLASSIFIER = "MIT/ast-finetuned-audioset-10-10-0.4593"
_WEIGHTS = ("*.safetensors", "*.bin")  # transformers reads the first kind that is there
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_LONGEST_CAPTION = 77  # tokens, as CLAP was trained and as the reference implementation measures
_FRAME_SECONDS, _HOPS_PER_SECOND = 0.025, 100  # of AST's spectrogram


@dataclass(frozen=True)
class Origin:
    """Identity of a model in a report."""

    id: str  # folder or hub id, as given
    revision: str | None  # commit on the hub; None for a folder
    sha256: str  # of the weight files in the order of their names


class Clap:
    """A transformers ClapModel in float32, from `from_pretrained`.

    Its feature extractor takes a random part of longer audio; windows are never longer, so nothing is random.
    """

    def __init__(self, model: Any, extractor: Any, folder: Path, origin: Origin) -> None:
        self.model, self.extractor, self.origin = model, extractor, origin
        self.sample_rate = int(extractor.sampling_rate)
        self.window_samples = int(extractor.nb_max_samples)
        self.dimensions = int(model.config.projection_dim)
        self._folder = folder

    @classmethod
    def from_pretrained(cls, name: str = CLAP, device: str = "cpu", what: str = "CLAP model") -> Self:
        """Load from a hub id, or a folder with config.json, weights, preprocessor_config.json and tokenizer.

        Args:
            name: Folder or hub id.
            device: Where to compute.
            what: The model's name in errors.

        Raises:
            UserError: The model cannot be read, or the hub cannot be reached.
        """
        from transformers import ClapFeatureExtractor, ClapModel

        return cls(*_load(ClapModel, ClapFeatureExtractor, "clap", name, what, device))

    @torch.no_grad()
    def embed_audio(self, windows: Sequence[Tensor]) -> Floats:
        """Embed mono audio at `sample_rate`, float64 [W, D] with rows of unit length.

        Args:
            windows: float32 [samples] each, 1 to `window_samples`; short ones are repeated to fill a window, as in
                the model's training.

        Raises:
            ValueError: A window is longer, and would be cut at random.
        """
        spectrograms = _features(self, [window.double().numpy() for window in windows], "input_features")
        # for models that fuse parts of long audio, the extractor would mark a random window as longer
        whole = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.model.device)
        output = self.model.get_audio_features(spectrograms, is_longer=whole)
        return _unit_rows(output.pooler_output)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str], batch_size: int = 16) -> Floats:
        """Embed captions, cut at 77 tokens: float64 [n, D] with rows of unit length.

        Raises:
            UserError: The model's folder has no tokenizer.
        """
        tokenizer = self._tokenizer()
        rows = [np.empty((0, self.dimensions))]
        for first in range(0, len(captions), batch_size):
            batch = list(captions[first : first + batch_size])
            cut_and_pad = {"padding": True, "truncation": True, "max_length": _LONGEST_CAPTION}
            tokens = tokenizer(batch, return_tensors="pt", **cut_and_pad).to(self.model.device)
            output = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            rows.append(_unit_rows(output.pooler_output))
        return np.concatenate(rows)

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            # without any file transformers would make up an empty tokenizer
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


class AudioTagger:
    """A transformers ASTForAudioClassification in float32, from `from_pretrained`."""

    def __init__(self, model: Any, extractor: Any, folder: Path, origin: Origin) -> None:
        self.model, self.extractor, self.origin = model, extractor, origin
        self.sample_rate = int(extractor.sampling_rate)
        self.window_samples = int(extractor.max_length * self.sample_rate / _HOPS_PER_SECOND)
        self.classes = int(model.config.num_labels)
        self._shortest = round(_FRAME_SECONDS * self.sample_rate)

    @classmethod
    def from_pretrained(cls, name: str = CLASSIFIER, device: str = "cpu", what: str = "classifier") -> Self:
        """Load from a folder or a hub id, as `Clap` does, without a tokenizer."""
        from transformers import ASTFeatureExtractor, ASTForAudioClassification

        kind = "audio-spectrogram-transformer"
        return cls(*_load(ASTForAudioClassification, ASTFeatureExtractor, kind, name, what, device))

    @torch.no_grad()
    def probabilities(self, windows: Sequence[Tensor]) -> Floats:
        """Return the probability of each class, float64 [W, C]: a softmax over the logits.

        AST is trained with a sigmoid for each class, since several can be audible. KL needs a distribution, so the
        softmax is taken all the same, as the reference implementation does with PaSST.

        Args:
            windows: Mono audio at `sample_rate`, float32 [samples] each, 1 to `window_samples`.

        Raises:
            ValueError: A window is longer, and would be cut.
        """
        audio = [F.pad(window, (0, max(0, self._shortest - len(window)))).numpy() for window in windows]
        logits = self.model(_features(self, audio, "input_values")).logits
        result: Floats = logits.double().softmax(dim=-1).cpu().numpy()
        return result


def _load(
    kind: Any, extractor: Any, model_type: str, name: str, what: str, device: str
) -> tuple[Any, Any, Path, Origin]:
    """Return a model in evaluation mode, its feature extractor, their folder, and where they come from."""
    folder = find_folder(name, what)
    model = load_pretrained(kind, folder, name, what, model_type)
    try:
        features = extractor.from_pretrained(folder)
    except Exception as error:
        raise UserError(
            f"{what} {name} has no readable preprocessor_config.json; save its feature extractor beside it."
        ) from error
    return model.to(device), features, folder, Origin(name, revision_of(folder), weights_sha256(folder))


def weights_sha256(folder: Path) -> str:
    """Hash the weight files of a folder in the order of their names: its safetensors, otherwise its pickles."""
    digest = hashlib.sha256()
    for file in next((found for kind in _WEIGHTS if (found := sorted(folder.glob(kind)))), []):
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _features(model: Clap | AudioTagger, audio: Sequence[npt.NDArray[Any]], name: str) -> Tensor:
    """Return the extractor's features of windows; raises `ValueError` for a window that it would cut."""
    if any(len(window) > model.window_samples for window in audio):
        raise ValueError(f"a window must have at most {model.window_samples} samples")
    features = model.extractor(audio, sampling_rate=model.sample_rate, return_tensors="np")[name]
    return torch.from_numpy(np.asarray(features, dtype=np.float32)).to(model.model.device)


def _unit_rows(embeddings: Tensor) -> Floats:
    array: Floats = F.normalize(embeddings.double(), dim=-1).cpu().numpy()
    return array
