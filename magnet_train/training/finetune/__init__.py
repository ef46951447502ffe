"""Begin with another model's weights, and train all of it, a part of it, or a small addition to it."""

from magnet_train.training.finetune.init_from import start, take_architecture
from magnet_train.training.finetune.trainable import Freeze, LoRA, TrainableParameters

__all__ = ["Freeze", "LoRA", "TrainableParameters", "start", "take_architecture"]
