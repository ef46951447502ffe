"""Text encoders: `TextEncoder` is the contract, `KINDS` lists the kinds that checkpoints may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magnet_train.errors import UserError
from magnet_train.text.encoder import TextEncoder
from magnet_train.text.plain import ClassLabels, NoText, WordText
from magnet_train.text.t5 import T5Text

__all__ = ["KINDS", "ClassLabels", "NoText", "T5Text", "TextEncoder", "WordText", "text_encoder_from_spec"]

KINDS: dict[str, type[TextEncoder]] = {kind.kind: kind for kind in (T5Text, WordText, ClassLabels, NoText)}


def text_encoder_from_spec(spec: dict[str, Any], folder: Path | None = None) -> TextEncoder:
    """Build the encoder that a checkpoint or export describes, from `KINDS` alone; see `TextEncoder.from_spec`.

    Raises:
        UserError: As there, or the kind is unknown.
    """
    kind = str(spec.get("kind"))
    if kind not in KINDS:
        raise UserError(f"unknown text encoder kind '{kind}'; this version knows {', '.join(KINDS)}.")
    return KINDS[kind].from_spec(spec, folder)
