"""Text encoders: captions in, states and a mask out.

Shapes: B captions, S positions (that of the longest caption), D = dim. An empty or missing caption is a row
whose mask is False everywhere: the null condition of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, T5EncoderModel

from magnet_train.errors import UserError
from magnet_train.hub import SETTINGS, WEIGHTS, find_folder, lacking, revision_of, unreadable

QUICKSTART = "quickstart"
_T = TypeVar("_T")


def _folder_of(name: str, files: tuple[str, ...] = SETTINGS, revision: str | None = None) -> Path:
    if name == QUICKSTART:
        return Path(str(resources.files("magnet_train.quickstart") / "text"))
    return find_folder(name, "text encoder", files, revision)


class _Frozen:
    """Hold a module that neither trains nor is saved: not in `state_dict`, shared by deep copies (EMA)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Tokenizer:
    """A transformers tokenizer that says so when it cuts a caption.

    Args:
        name: Hub id, folder, or "quickstart" for the packaged one.
        max_length: Longest caption in tokens.
        revision: Commit on the hub; the newest when None.

    Raises:
        UserError: Nothing readable is there.
    """

    def __init__(self, name: str, max_length: int, revision: str | None = None) -> None:
        folder = _folder_of(name, revision=revision)
        try:
            # Said outright: left open, transformers asks at the terminal whether to run a folder's code.
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

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"captions are cut at {self.max_length} tokens, first of all '{text[:60]}...'; raise "
                "max_length of the text encoder to keep them whole.",
                stacklevel=4,
            )


class T5Text(nn.Module):
    """A T5 encoder, frozen as in the paper or trained along.

    Args:
        name: Hub id ("t5-base"), folder, or "quickstart" for the small one in the package.
        trainable: Train it along; its weights are then part of checkpoints and exports.
        pretrained: False starts from random weights of the folder's configuration.
        max_length: Longest caption in tokens; longer ones are cut with a warning.
        revision: Commit on the hub; the newest when None, and which that was is kept in checkpoints.

    Raises:
        UserError: It cannot be found or read, or is to be random and frozen, which no checkpoint could keep.

    Source: arXiv 2401.04577, section 4.
    """

    def __init__(
        self,
        name: str = "t5-base",
        trainable: bool = False,
        pretrained: bool = True,
        max_length: int = 256,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if not (trainable or pretrained):
            raise UserError(
                f"text encoder {name} would be random and frozen; set trainable or pretrained to true."
            )
        self.id, self.trainable, self.pretrained, self.max_length = name, trainable, pretrained, max_length
        folder = _folder_of(name, SETTINGS + WEIGHTS if pretrained else SETTINGS, revision)
        self.revision = revision_of(folder)
        self.tokenizer = Tokenizer(name, max_length, self.revision)
        model = _load_t5(folder, name, pretrained)
        self.dim = int(model.config.d_model)
        if trainable:
            self.encoder = model
        else:
            self._frozen = _Frozen(model)

    @property
    def _t5(self) -> Any:  # T5EncoderModel; transformers is loosely typed
        return self.encoder if self.trainable else self._frozen.module

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if not self.trainable:
            self._frozen.module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Encode captions; float [B, S, dim] and bool [B, S]."""
        ids, mask = self.tokenizer(texts)
        device = next(self._t5.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        # A row without any key would be NaN; its states are never used, so let it see the padding.
        readable = mask | ~mask.any(dim=1, keepdim=True)
        readable = readable.long()
        if self.trainable:
            return self._t5(input_ids=ids, attention_mask=readable).last_hidden_state, mask
        # In its own precision, as the reference has it: T5 overflows under a trainer's 16-mixed.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self._t5(input_ids=ids, attention_mask=readable).last_hidden_state, mask

    def spec(self) -> dict[str, Any]:
        """Describe the encoder in JSON primitives."""
        spec = {"kind": "t5", "name": self.id, "trainable": self.trainable, "max_length": self.max_length}
        return spec if self.revision is None else {**spec, "revision": self.revision}

    def save(self, folder: Path) -> None:
        """Write tokenizer and configuration, and frozen weights; trained ones are saved with the model."""
        self.tokenizer.tokenizer.save_pretrained(folder)
        if self.trainable:
            self._t5.config.save_pretrained(folder)
        else:
            self._t5.save_pretrained(folder)


class WordText(nn.Module):
    """One trained vector for each word of a tokenizer: the plainest text encoder there is.

    Args:
        tokenizer: Hub id or folder of a tokenizer, or "quickstart" for the packaged one.
        dim: Width of the vectors.
        max_length: Longest caption in tokens; longer ones are cut with a warning.
    """

    def __init__(self, tokenizer: str = QUICKSTART, dim: int = 128, max_length: int = 64) -> None:
        super().__init__()
        self.id, self.dim, self.trainable, self.max_length = tokenizer, dim, True, max_length
        self.tokenizer = Tokenizer(tokenizer, max_length)
        self.embedding = nn.Embedding(len(self.tokenizer.tokenizer), dim)

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Encode captions; float [B, S, dim] and bool [B, S]."""
        ids, mask = self.tokenizer(texts)
        device = self.embedding.weight.device
        return self.embedding(ids.to(device)), mask.to(device)

    def spec(self) -> dict[str, Any]:
        """Describe the encoder in JSON primitives."""
        return {"kind": "words", "name": self.id, "dim": self.dim, "max_length": self.max_length}

    def save(self, folder: Path) -> None:
        """Write the tokenizer; the vectors are saved with the model."""
        self.tokenizer.tokenizer.save_pretrained(folder)


class ClassLabels(nn.Module):
    """One trained vector for each of a few labels; a caption is exactly one of them.

    Args:
        labels: The labels.
        dim: Width of the vectors.
    """

    def __init__(self, labels: list[str], dim: int = 128) -> None:
        super().__init__()
        if not labels:
            raise UserError("labels is empty; list the classes, or use magnet_train.text.NoText.")
        self.id, self.dim, self.trainable, self.labels = "labels", dim, True, list(labels)
        self.embedding = nn.Embedding(len(labels), dim)
        self._index = {label: index for index, label in enumerate(labels)}

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Look labels up; float [B, 1, dim] and bool [B, 1].

        Raises:
            UserError: A caption is not one of the labels.
        """
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
        """Describe the encoder in JSON primitives."""
        return {"kind": "labels", "labels": self.labels, "dim": self.dim}

    def save(self, folder: Path) -> None:
        """Nothing to write: the labels stand in the specification."""


class NoText(nn.Module):
    """No text at all: every clip has the null condition.

    Args:
        dim: Width of the (unused) states.
    """

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.id, self.dim, self.trainable = "none", dim, False
        self.register_buffer("null", torch.zeros(1, 1, dim), persistent=False)

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Return zeros [B, 1, dim] and a mask [B, 1] that is False."""
        hidden = self.null.expand(len(texts), -1, -1)  # type: ignore[operator]
        return hidden, torch.zeros(len(texts), 1, dtype=torch.bool, device=hidden.device)

    def spec(self) -> dict[str, Any]:
        """Describe the encoder in JSON primitives."""
        return {"kind": "none", "dim": self.dim}

    def save(self, folder: Path) -> None:
        """Nothing to write."""


TextEncoder = T5Text | WordText | ClassLabels | NoText


def text_encoder_from_spec(spec: dict[str, Any], folder: Path | None = None) -> TextEncoder:
    """Build the encoder that a checkpoint or export describes; never imports what a file names.

    Args:
        spec: What `spec()` returned.
        folder: Where tokenizer and configuration lie when the export carries them; None takes the name.

    Raises:
        UserError: The kind is unknown, or a field is missing or of the wrong type.
    """
    kind = spec.get("kind")
    if kind == "t5":
        trainable = _field(spec, "trainable", bool)
        encoder = T5Text(
            _field(spec, "name", str) if folder is None else str(folder),
            trainable,
            pretrained=not trainable,  # trained weights come with the model; a frozen encoder brings its own
            max_length=_field(spec, "max_length", int),
            revision=spec.get("revision") if folder is None else None,
        )
        encoder.id = _field(spec, "name", str)
        return encoder
    if kind == "words":
        words = WordText(
            _field(spec, "name", str) if folder is None else str(folder),
            _field(spec, "dim", int),
            _field(spec, "max_length", int),
        )
        words.id = _field(spec, "name", str)
        return words
    if kind == "labels":
        return ClassLabels(_field(spec, "labels", list), _field(spec, "dim", int))
    if kind == "none":
        return NoText(_field(spec, "dim", int))
    raise UserError(f"unknown text encoder kind '{kind}'; this version knows t5, words, labels and none.")


def _field(spec: dict[str, Any], name: str, kind: type[_T]) -> _T:
    """Take a field of a description that was read from a file."""
    value = spec.get(name)
    if not isinstance(value, kind):
        raise UserError(
            f"the text encoder's description lacks '{name}' or it is no {kind.__name__}; "
            "export the model again."
        )
    return value


def _load_t5(folder: Path, name: str, pretrained: bool) -> Any:
    try:
        if not pretrained:
            return T5EncoderModel(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        model, report = T5EncoderModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers raises many kinds here
        raise unreadable(name, "text encoder", error) from error
    if report["missing_keys"]:
        raise lacking(name, "text encoder", report["missing_keys"])
    return model
