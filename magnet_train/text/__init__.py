"""Turn captions into what the model attends to."""

from magnet_train.text.plain import ClassLabels, NoText, WordText
from magnet_train.text.spec import TextEncoder, text_encoder_from_spec
from magnet_train.text.t5 import T5Text

__all__ = ["ClassLabels", "NoText", "T5Text", "TextEncoder", "WordText", "text_encoder_from_spec"]
