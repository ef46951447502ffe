"""Tokenizers of text encoders, and where their files lie."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoTokenizer

from magnet_train.storage.hub import SETTINGS, find_folder, unreadable

QUICKSTART = "quickstart"


def folder_of(name: str, files: tuple[str, ...] = SETTINGS, revision: str | None = None) -> Path:
    """Return the folder of a text encoder, downloaded if it is on the hub; errors as in `find_folder`."""
    if name == QUICKSTART:
        return Path(str(resources.files("magnet_train.apps.quickstart") / "text"))
    return find_folder(name, "text encoder", files, revision)


class Tokenizer:
    """A transformers tokenizer that warns when it cuts a caption.

    Args:
        name: Hub id, folder, or "quickstart" for the packaged one.
        max_length: Longest caption in tokens.
        revision: Commit on the hub; the newest when None.

    Raises:
        UserError: The tokenizer is missing or cannot be read.
    """

    def __init__(self, name: str, max_length: int, revision: str | None = None) -> None:
        folder = folder_of(name, revision=revision)
        try:
            # Explicit: by default transformers asks at the terminal whether to run a folder's code.
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds here
            raise unreadable(name, "text encoder", error) from error
        self.max_length = max_length
        self._warned = False

    def __call__(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Return ids int64 [B, S] and mask bool [B, S]."""
        filled = [text or "" for text in texts]
        batch = self.tokenizer(filled)
        lengths = [len(ids) for ids in batch["input_ids"]]
        if max(lengths) > self.max_length:
            self._warn(filled[lengths.index(max(lengths))])
            batch = self.tokenizer(filled, truncation=True, max_length=self.max_length)  # keeps the end token
        batch = self.tokenizer.pad(batch, return_tensors="pt")
        present = torch.tensor([bool(text) for text in filled])
        return batch["input_ids"], batch["attention_mask"].bool() & present[:, None]

    def unknown_words(self, texts: Sequence[str | None]) -> list[str]:
        """List the words that a vocabulary of whole words lacks, in the order of the captions.

        Other vocabularies spell such words from parts and lack none.
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

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"captions are cut at {self.max_length} tokens, the first is '{text[:60]}...'; raise max_length of the text "
                "encoder to keep them whole.",
                stacklevel=4,
            )
