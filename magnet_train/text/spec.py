"""Build a text encoder from the description in a checkpoint or export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from magnet_train.errors import UserError
from magnet_train.text.plain import ClassLabels, NoText, WordText
from magnet_train.text.t5 import T5Text

_T = TypeVar("_T")

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
