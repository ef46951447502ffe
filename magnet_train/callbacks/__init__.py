"""What happens around training: the progress bar and the sound of the fixed prompts."""

from magnet_train.callbacks.progress import StepProgressBar
from magnet_train.callbacks.samples import SampleAudio

__all__ = ["SampleAudio", "StepProgressBar"]
