"""How weights move: schedules of the learning rate, Muon, and the moving average."""

from magnet_train.optim.ema import MovingAverage
from magnet_train.optim.muon import MuonAdamW
from magnet_train.optim.schedules import WarmupCosine, WarmupInverseSquareRoot

__all__ = ["MovingAverage", "MuonAdamW", "WarmupCosine", "WarmupInverseSquareRoot"]
