"""The contract of a text encoder, and the tokenizer that encoders of words share.

Shapes: B captions, S positions of the longest caption, D = dim.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import AutoTokenizer

from magnet_train.errors import UserError
from magnet_train.storage.hub import SETTINGS, find_folder, recorded_name, unreadable
from magnet_train.text.vocabulary import CAPTIONS, word_tokenizer

QUICKSTART = "quickstart"
_T = TypeVar("_T")


class TextEncoder(nn.Module):
    """Captions to the states that the model attends to.

    A new kind is a subclass with its own `kind`, listed in `magnet_train.text.KINDS`.
    """

    kind: ClassVar[str]  # name of the kind in checkpoints
    id: str  # name of this encoder, for messages and cards
    dim: int  # width of the states
    trainable: bool  # whether the weights train along, and are saved with the model
    words: list[str] | None = None  # the vocabulary, if it comes from captions

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Encode B captions; an empty or missing one is the null condition of the model.

        Returns:
            States float [B, S, D], and a mask bool [B, S] that is True where a state counts: nowhere in the row of
            a null condition.
        """
        raise NotImplementedError

    @property
    def lacks_words(self) -> bool:
        """Whether the vocabulary is to come from captions and is not set yet."""
        return self.id == CAPTIONS and not self.words

    def set_words(self, words: Sequence[str]) -> None:
        """Set the vocabulary of an encoder that lacks one; its weights are random again."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Return a description in JSON primitives that `from_spec` reads."""
        raise NotImplementedError

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path | None) -> Self:
        """Build the encoder of an untrusted `spec`, from the `folder` that `save` wrote; None loads it by its name.

        Raises:
            UserError: A field is missing or of the wrong type, or files cannot be read.
        """
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write what `from_spec` needs beside the description and the trained weights: nothing by default."""


def field(spec: dict[str, Any], name: str, kind: type[_T]) -> _T:
    """Return a field of a description, whose type is checked."""
    value = spec.get(name)
    if not isinstance(value, kind):
        raise UserError(
            f"the text encoder's description needs '{name}' of type {kind.__name__}; export the model again."
        )
    return value


def words_of(spec: dict[str, Any]) -> list[str] | None:
    """Return the vocabulary in a description, if it holds one; it is checked."""
    if spec.get("words") is None:
        return None
    words = field(spec, "words", list)
    if not all(isinstance(word, str) for word in words):
        raise UserError("the text encoder's description has words that are not text; export the model again.")
    return words


def folder_of(name: str, files: tuple[str, ...] = SETTINGS, revision: str | None = None) -> Path:
    """Return the folder of a text encoder, downloaded if it is on the hub; errors as in `find_folder`."""
    if name == QUICKSTART:
        return Path(str(resources.files("magnet_train.apps.quickstart") / "text"))
    return find_folder(name, "text encoder", files, revision)


def recorded_id(name: str) -> str:
    """Return the id of a text encoder for checkpoints: of a local folder its full path."""
    return name if name == QUICKSTART else recorded_name(name)


def _read_tokenizer(name: str, revision: str | None) -> Any:
    folder = folder_of(name, revision=revision)
    try:
        # Explicit: by default transformers asks at the terminal whether to run a folder's code.
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here
        raise unreadable(name, "text encoder", error) from error


class Tokenizer:
    """A transformers tokenizer that warns when it cuts a caption.

    Args:
        name: Hub id, folder, or "quickstart" for the packaged one.
        max_length: Longest caption in tokens.
        revision: Commit on the hub; the newest when None.
        words: The vocabulary; `name` and `revision` have no effect then.

    Raises:
        UserError: The tokenizer is missing or cannot be read.
    """

    def __init__(
        self, name: str, max_length: int, revision: str | None = None, words: Sequence[str] | None = None
    ) -> None:
        self.tokenizer = _read_tokenizer(name, revision) if words is None else word_tokenizer(words)
        self.max_length = max_length
        self._warned = False

    def __call__(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Return ids int64 [B, S] and mask bool [B, S]."""
        filled = [text or "" for text in texts]
        batch = self.tokenizer(filled)
        lengths = [len(ids) for ids in batch["input_ids"]]
        if max(lengths) > self.max_length:
            if not self._warned:
                self._warned = True
                first = filled[lengths.index(max(lengths))][:60]
                warnings.warn(
                    f"captions are cut at {self.max_length} tokens, the first is '{first}...'; raise max_length of the "
                    "text encoder to keep them whole.",
                    stacklevel=3,
                )
            batch = self.tokenizer(filled, truncation=True, max_length=self.max_length)  # keeps the end token
        batch = self.tokenizer.pad(batch, return_tensors="pt")
        present = torch.tensor([bool(text) for text in filled])
        return batch["input_ids"], batch["attention_mask"].bool() & present[:, None]

    def unknown_words(self, texts: Sequence[str | None]) -> list[str]:
        """List the words that a vocabulary of whole words lacks, in the order of the captions.

        Other vocabularies spell such words from parts, and lack none.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or not isinstance(backend.model, WordLevel):
            return []
        words: list[str] = []
        for text in filter(None, texts):
            encoding = backend.encode(text, add_special_tokens=False)
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if token == self.tokenizer.unk_token_id:
                    words.append(text[start:end])
        return list(dict.fromkeys(words))
