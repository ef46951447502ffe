"""Turn captions into what the model attends to."""

from magnet_train.text.encoders import (
    ClassLabels,
    NoText,
    T5Text,
    TextEncoder,
    WordText,
    text_encoder_from_spec,
)

__all__ = ["ClassLabels", "NoText", "T5Text", "TextEncoder", "WordText", "text_encoder_from_spec"]
