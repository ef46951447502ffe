"""Begin with another model's weights, and train all of it, a part of it, or a small addition to it."""

from magnet_train.training.finetune.init_from import start, take_architecture
from magnet_train.training.finetune.trainable import Freeze, LoRA, Tuning

__all__ = ["Freeze", "LoRA", "Tuning", "start", "take_architecture"]
