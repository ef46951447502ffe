"""Begin with another model's weights, and train all of it, a part of it, or a small addition to it."""

from magnet_train.finetune.start import start, take_architecture
from magnet_train.finetune.tuning import Freeze, LoRA, Tuning

__all__ = ["Freeze", "LoRA", "Tuning", "start", "take_architecture"]
