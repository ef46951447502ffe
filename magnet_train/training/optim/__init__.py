"""How weights move: schedules of the learning rate, Muon, and the moving average."""

from magnet_train.training.optim.ema import MovingAverage
from magnet_train.training.optim.muon import MuonAdamW
from magnet_train.training.optim.schedules import WarmupCosine, WarmupInverseSquareRoot

__all__ = ["MovingAverage", "MuonAdamW", "WarmupCosine", "WarmupInverseSquareRoot"]
