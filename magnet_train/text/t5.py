"""A T5 encoder, frozen or trained along.

Shapes: B captions, S positions of the longest caption, D = dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, T5EncoderModel

from magnet_train.errors import UserError
from magnet_train.storage import hub
from magnet_train.storage.weight_checks import require_finite, require_modest
from magnet_train.text.encoder import TextEncoder, Tokenizer, field, folder_of, recorded_id, words_of
from magnet_train.text.vocabulary import CAPTIONS, small_t5


class _Frozen:
    """Hides a module from `state_dict` and the optimizer, and is shared by deep copies (EMA)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class T5Text(TextEncoder):
    """A T5 encoder, frozen as in the paper or trained along.

    Args:
        name: Hub id ("t5-base"), folder, "quickstart" for the small one in the package, or "captions" for a small one with
            the words of the captions, which `fit` collects from the shards.
        trainable: Train it along; its weights are then part of checkpoints and exports.
        pretrained: False starts from random weights of the folder's configuration.
        max_length: Longest caption in tokens; longer ones are cut with a warning.
        revision: Commit on the hub; None takes the newest, which checkpoints then record.
        words: The vocabulary of "captions", if it is known already.

    Raises:
        UserError: The encoder cannot be found or read, or would be random and frozen (frozen weights are not saved).

    Source: arXiv 2401.04577, section 4.
    """

    kind = "t5"

    def __init__(
        self,
        name: str = "t5-base",
        trainable: bool = False,
        pretrained: bool = True,
        max_length: int = 256,
        revision: str | None = None,
        words: list[str] | None = None,
    ) -> None:
        super().__init__()
        own_words = name == CAPTIONS or words is not None
        if own_words and (pretrained or not trainable):
            raise UserError(
                f"text encoder {name} has no trained weights; set trainable: true and pretrained: false."
            )
        if not (trainable or pretrained):
            raise UserError(
                f"text encoder {name} would be random and frozen; set trainable or pretrained to true."
            )
        self.id, self.trainable, self.pretrained, self.max_length = name, trainable, pretrained, max_length
        self.revision: str | None = None
        if own_words:
            self.set_words(words or [])
            return
        folder = folder_of(name, hub.SETTINGS + hub.WEIGHTS if pretrained else hub.SETTINGS, revision)
        self.id, self.revision = recorded_id(name), hub.revision_of(folder)
        self.tokenizer = Tokenizer(name, max_length, self.revision)
        model = _load_t5(folder, name, pretrained)
        self.dim = int(model.config.d_model)
        if trainable:
            self.encoder = model
        else:
            self._frozen = _Frozen(model)

    def set_words(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.tokenizer = Tokenizer(self.id, self.max_length, words=self.words)
        self.encoder = T5EncoderModel(small_t5(len(self.words)))
        self.dim = int(self.encoder.config.d_model)

    @property
    def _t5(self) -> Any:  # T5EncoderModel; transformers is loosely typed
        return self.encoder if self.trainable else self._frozen.module

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if not self.trainable:
            self._frozen.module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        ids, mask = self.tokenizer(texts)
        device = next(self._t5.parameters()).device
        ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        # A row without any key would be NaN. Its states are never used, so it may attend to the padding.
        readable = (mask | ~mask.any(dim=1, keepdim=True)).long()
        if self.trainable:
            return self._t5(input_ids=ids, attention_mask=readable).last_hidden_state, mask
        # In the encoder's own precision, as in the reference: T5 overflows under autocast to float16.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self._t5(input_ids=ids, attention_mask=readable).last_hidden_state, mask

    def spec(self) -> dict[str, Any]:
        spec = {"kind": self.kind, "name": self.id, "trainable": self.trainable}
        revision = {} if self.revision is None else {"revision": self.revision}
        words = {} if self.words is None else {"words": self.words}
        return {**spec, "max_length": self.max_length, **revision, **words}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path | None) -> Self:
        name, trainable = field(spec, "name", str), field(spec, "trainable", bool)
        encoder = cls(
            str(folder or name),
            trainable,
            pretrained=not trainable,  # trained weights come with the model
            max_length=field(spec, "max_length", int),
            revision=spec.get("revision") if folder is None else None,
            words=words_of(spec),
        )
        encoder.id = name
        return encoder

    def save(self, folder: Path) -> None:
        self.tokenizer.tokenizer.save_pretrained(folder)
        if self.trainable:
            self._t5.config.save_pretrained(folder)
        else:
            self._t5.save_pretrained(folder)


def _load_t5(folder: Path, name: str, pretrained: bool) -> Any:
    if not pretrained:
        try:
            return T5EncoderModel(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        except Exception as error:  # transformers raises many kinds here
            raise hub.unreadable(name, "text encoder", error) from error
    files = [file for kind in hub.WEIGHTS + hub.PICKLED_WEIGHTS for file in folder.glob(kind)]
    size = sum(file.stat().st_size for file in files)
    check = partial(require_modest_t5, folder, name, size)
    model = hub.load_pretrained(T5EncoderModel, folder, name, "text encoder", check=check)
    require_finite(model.state_dict(), f"text encoder {name}")
    return model


def require_modest_t5(folder: Path, name: str, size: int) -> None:
    """Raise `UserError` if a T5's `config.json` describes more than its weights of `size` bytes could hold."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    require_modest(
        folder, name, "text encoder", lambda: int(config.num_layers), lambda: T5EncoderModel(config), size
    )
