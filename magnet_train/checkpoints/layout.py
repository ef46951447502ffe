"""Where our part lies in a Lightning checkpoint; imports nothing, so that writer and reader can share it."""

KEY = "magnet_train"
FORMAT = 1
RAW_STATE = "current_model_state"  # Lightning's EMA callback keeps the averaged weights in `state_dict`
# What stands there beside format and settings: where the model comes from. See `ModelBundle` and `finetune.start`.
ORIGIN = ("licence", "data", "base", "adapter")
