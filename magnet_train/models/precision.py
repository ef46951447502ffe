"""Device and number format of a model: float32, or 16 bits where the hardware multiplies them faster."""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F

from magnet_train.errors import UserError, first_line

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST_DIM = 256  # below this a CPU gains nothing: at dim 128 bfloat16 takes as long, at 256 half the time
LEAST_GAIN = 1.5  # speed-up of a matrix product: native bfloat16 gives 3 to 7, emulated far below 1


def compute_dtype(precision: str, device: torch.device, dim: int) -> torch.dtype:
    """Return the type that a model of width `dim` computes in.

    Args:
        precision: float32, bfloat16, float16, or auto: bfloat16 where `device` multiplies it faster, else float32.
        device: Where it computes.
        dim: Width of the model.

    Raises:
        UserError: There is no such precision, or the device cannot compute in it.
    """
    if precision == "auto":
        wide = device.type != "cpu" or dim >= LEAST_DIM
        return torch.bfloat16 if wide and has_fast_bfloat16(device) else torch.float32
    dtype = _DTYPES.get(precision)
    if dtype is None:
        raise UserError(f"precision {precision!r} is not known; choose auto, float32, bfloat16 or float16.")
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("precision float16 needs a GPU; use bfloat16 or float32.")
    if dtype == torch.bfloat16 and device.type == "cuda" and not has_fast_bfloat16(device):
        raise UserError(f"{device} cannot multiply bfloat16; use float16 or float32.")
    return dtype


def usable_device(name: str, option: str = "device") -> torch.device:
    """Return a device by name; raises `UserError`, which calls it by the name of its `option`, if it cannot be used."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = first_line(error)[:80]
        raise UserError(f"{option} {name} cannot be used ({reason}); choose cpu or cuda.") from error


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type without its module: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether a GPU has bfloat16, or a CPU multiplies it faster than float32, timed once for a few milliseconds."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return native
    return device.type == "cpu" and _cpu_gain() >= LEAST_GAIN


@cache
def _cpu_gain() -> float:
    """Measure how much faster a matrix product is in bfloat16 than in float32."""
    return _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the least time of a few products of [64, 512] and [512, 512] (s)."""
    x, weight = torch.ones(64, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(6):  # the first prepares the kernel
        began = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - began)
    return min(times)
