"""Text encoders without a language model: a trained vector for each word, one for each label, or no text.

Shapes: B captions, S positions of the longest caption, D = dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from magnet_train.errors import UserError
from magnet_train.text.encoder import QUICKSTART, TextEncoder, Tokenizer, field, recorded_id, words_of
from magnet_train.text.vocabulary import CAPTIONS


class WordText(TextEncoder):
    """One trained vector for each word of a tokenizer: the plainest text encoder there is.

    Args:
        tokenizer: Hub id or folder of a tokenizer, "quickstart" for the packaged one, or "captions" for the words of the
            captions, which `fit` collects from the shards.
        dim: Width of the vectors.
        max_length: Longest caption in tokens; longer ones are cut with a warning.
        words: The vocabulary of "captions", if it is known already.
    """

    kind = "words"

    def __init__(
        self,
        tokenizer: str = QUICKSTART,
        dim: int = 128,
        max_length: int = 64,
        words: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.id, self.dim, self.trainable, self.max_length = tokenizer, dim, True, max_length
        if tokenizer == CAPTIONS or words is not None:
            self.set_words(words or [])
        else:
            self.tokenizer = Tokenizer(tokenizer, max_length)
            self.id = recorded_id(tokenizer)
            self.embedding = nn.Embedding(len(self.tokenizer.tokenizer), dim)

    def set_words(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.tokenizer = Tokenizer(self.id, self.max_length, words=self.words)
        self.embedding = nn.Embedding(len(self.tokenizer.tokenizer), self.dim)

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        ids, mask = self.tokenizer(texts)
        device = self.embedding.weight.device
        return self.embedding(ids.to(device)), mask.to(device)

    def spec(self) -> dict[str, Any]:
        spec = {"kind": self.kind, "name": self.id, "dim": self.dim, "max_length": self.max_length}
        return spec if self.words is None else {**spec, "words": self.words}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path | None) -> Self:
        name = field(spec, "name", str)
        words = words_of(spec)
        encoder = cls(str(folder or name), field(spec, "dim", int), field(spec, "max_length", int), words)
        encoder.id = name
        return encoder

    def save(self, folder: Path) -> None:
        self.tokenizer.tokenizer.save_pretrained(folder)


class ClassLabels(TextEncoder):
    """One trained vector for each of a few labels; a caption is exactly one of them.

    Args:
        labels: The labels.
        dim: Width of the vectors.
    """

    kind = "labels"

    def __init__(self, labels: list[str], dim: int = 128) -> None:
        super().__init__()
        if not labels:
            raise UserError("labels is empty; list the classes, or use magnet_train.text.NoText.")
        self.id, self.dim, self.trainable, self.labels = "labels", dim, True, list(labels)
        self.embedding = nn.Embedding(len(labels), dim)
        self._index = {label: index for index, label in enumerate(labels)}

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        unknown = [text for text in texts if text and text not in self._index]
        if unknown:
            raise UserError(
                f"'{unknown[0]}' is not one of the labels {', '.join(self.labels)}; correct it or add it."
            )
        device = self.embedding.weight.device
        index = torch.tensor([self._index.get(text or "", 0) for text in texts], device=device)
        present = torch.tensor([bool(text) for text in texts], device=device)
        return self.embedding(index)[:, None], present[:, None]

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "labels": self.labels, "dim": self.dim}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path | None) -> Self:
        return cls(field(spec, "labels", list), field(spec, "dim", int))


class NoText(TextEncoder):
    """No text: every clip has the null condition.

    Args:
        dim: Width of the (unused) states.
    """

    kind = "none"

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.id, self.dim, self.trainable = "none", dim, False
        self.register_buffer("null", torch.zeros(1, 1, dim), persistent=False)

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        hidden = self.null.expand(len(texts), -1, -1)  # type: ignore[operator]
        return hidden, torch.zeros(len(texts), 1, dtype=torch.bool, device=hidden.device)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "dim": self.dim}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path | None) -> Self:
        return cls(field(spec, "dim", int))
