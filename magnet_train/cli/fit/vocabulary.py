"""Learn the vocabulary of a text encoder from the captions of the shards."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console

from datamodules import TokenDataModule
from magnet_train.checkpoints.bundle import KEY
from magnet_train.cli.ranks import is_first_process, print_once
from magnet_train.errors import UserError
from magnet_train.text.encoder import words_of
from magnet_train.text.vocabulary import learn_words
from magnet_train.training.checkpointing import peek


def learn_vocabulary(model: pl.LightningModule, data: pl.LightningDataModule, checkpoint: str | None) -> None:
    """Set the vocabulary of an encoder that lacks one: from the checkpoint, else from the training captions.

    Raises:
        UserError: There are no captions, all are the same, or the data cannot list them.
    """
    text = getattr(model, "text", None)
    if not getattr(text, "lacks_words", False):
        return
    stored = {} if checkpoint is None else peek(Path(checkpoint)) or {}
    words = words_of(stored.get(KEY, {}).get("text", {}))
    if words is None:
        if not isinstance(data, TokenDataModule):
            raise UserError(
                "a vocabulary from captions needs data.class_path datamodules.TokenDataModule, which can list them; use it, "
                "or name a tokenizer."
            )
        where = ", ".join(map(str, data.shards))
        with Console(stderr=True, quiet=not is_first_process()).status("reading the captions"):
            words = learn_words(data.caption_texts(), where)
        print_once(f"vocabulary  {len(words):,} words of the captions in {where}")
    text.set_words(words)  # type: ignore[union-attr]
