"""Check and convert the arguments of `Magnet`; each function raises `UserError` for a wrong type, shape or range.

Shapes: B clips, K codebooks, P frames of a prompt; audio float32 [channels, samples], full scale -1..1.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from torch import Tensor

from magnet_train.checkpoints.bundle import LONGEST_CLIP
from magnet_train.errors import UserError
from magnet_train.models.precision import dtype_name

LARGEST_SEED = 2**63 - 1  # limit of torch
BEATS = 4  # in a bar
SLOWEST, FASTEST = 20, 999  # beats per minute
_FULL_SCALE = {torch.int8: 2**7, torch.int16: 2**15, torch.int32: 2**31}
_TOKEN_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_captions(texts: object, name: str = "texts") -> list[str | None]:
    """Return B captions: an iterable of strings and None, not empty and not a single string."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise UserError(f"{name} is {texts!r}; give a list with one caption or None for each clip.")
    captions = list(texts)
    if not captions:
        raise UserError(f"{name} is [], an empty list; give a list with one caption or None for each clip.")
    for number, text in enumerate(captions):
        if text is not None and not isinstance(text, str):
            raise UserError(f"{name}[{number}] is {text!r}; give a caption, or None for a clip without one.")
    return captions


def as_whole_number(value: object, name: str) -> int:
    """Return `value`, an int or an integer of numpy or torch, as an int of 0 to 2^63 - 1."""
    try:
        number = operator.index(cast(SupportsIndex, value))
    except TypeError as error:
        raise UserError(f"{name} is {value!r}; give a whole number.") from error
    if not 0 <= number <= LARGEST_SEED:
        raise UserError(f"{name} {number} must lie in 0..{LARGEST_SEED}.")
    return number


def as_negative(negative: object, texts: list[str | None], strongest: float) -> list[str | None] | None:
    """Return the negative caption of each clip, None if there is none; `strongest` is the largest guidance coefficient."""
    if negative is None or isinstance(negative, str):
        negative = [negative] * len(texts)
    captions = as_captions(negative, "negative")
    if len(captions) != len(texts):
        raise UserError(
            f"negative has {len(captions)} captions for {len(texts)} clips; give one, or one for each clip."
        )
    if not any(captions):
        return None
    if strongest <= 1:
        raise UserError(
            f"a negative caption takes effect through guidance, which is at most {strongest:g} here; raise max_cfg_coef "
            "(--cfg) above 1."
        )
    return captions


def as_numbers(value: object, name: str, clips: int) -> list[int]:
    """Return a whole number for each clip, from one for all or one for each."""
    each = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * clips
    if len(each) != clips:
        raise UserError(f"{name} has {len(each)} numbers for {clips} clips; give one, or one for each clip.")
    return [as_whole_number(number, name) for number in each]


def as_bars(bars: object, bpm: object) -> float:
    """Return the length of some bars of four beats at a tempo (s)."""
    try:
        number, tempo = operator.index(cast(SupportsIndex, bars)), float(cast(Any, bpm))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"bars is {bars!r} and bpm {bpm!r}; give a whole number of bars and a tempo."
        ) from error
    if number < 1 or not SLOWEST <= tempo <= FASTEST:
        raise UserError(f"{number} bars at {tempo:g} bpm: use 1 bar or more, and {SLOWEST} to {FASTEST} bpm.")
    return as_seconds(number * BEATS * 60 / tempo)


def as_loop_seconds(bars: object, bpm: object, loop: bool, seconds: float | None) -> float:
    """Return the length of a loop in bars (s); it takes the place of `seconds`."""
    if seconds is not None or not loop:
        raise UserError("bars and bpm are the length of a loop; give loop=True, and leave out seconds.")
    return as_bars(bars, bpm)


def as_seconds(seconds: object) -> float:
    """Return the length of a clip (s)."""
    try:
        length = float(cast(Any, seconds))
    except (TypeError, ValueError) as error:
        raise UserError(f"seconds is {seconds!r}; give a number of seconds.") from error
    if not 0 < length <= LONGEST_CLIP:
        raise UserError(f"clip length {length:g} s is out of range; use 0 < seconds <= {LONGEST_CLIP:.0f}.")
    return length


def as_audio(audio: object, channels: int, name: str, most_dims: int) -> Tensor:
    """Return a tensor or numpy array called `name` as finite float32 [channels, samples].

    If `most_dims` is 3, [B, channels, samples] is accepted as well; [samples] is accepted for one channel. Integers are
    divided by their full scale.
    """
    tensor = _as_tensor(audio, f"{name} is {type(audio).__name__}; give a tensor or numpy array of samples")
    if tensor.dim() == 1 and channels == 1:
        tensor = tensor[None]
    if tensor.dim() not in range(2, most_dims + 1) or tensor.shape[-2] != channels:
        wanted = f"[{channels}, samples]" + (f" or [B, {channels}, samples]" if most_dims == 3 else "")
        raise UserError(
            f"the {name}'s shape {list(tensor.shape)} should be {wanted}; transpose what soundfile.read gives."
        )
    if tensor.dtype == torch.uint8:  # as in a WAV of 8 bits, whose silence is 128
        tensor = (tensor.float() - 128) / 128
    elif tensor.dtype in _FULL_SCALE:
        tensor = (tensor.double() / _FULL_SCALE[tensor.dtype]).float()
    elif not tensor.is_floating_point():
        raise UserError(
            f"the {name} has samples of type {dtype_name(tensor.dtype)}; convert them to float in -1..1."
        )
    tensor = tensor.detach().float()
    if not tensor.isfinite().all():
        raise UserError(f"the {name} holds samples that are not finite numbers; render it again.")
    return tensor


def as_tokens(tokens: object, batch: int, n_q: int) -> Tensor:
    """Return the tokens of a prompt, int64 [B, K, P]."""
    tensor = _as_tensor(tokens, f"prompt is {type(tokens).__name__}; give tokens, int64 [B, K, frames]")
    if tensor.dtype not in _TOKEN_TYPES:
        raise UserError(
            f"the prompt of tokens has type {dtype_name(tensor.dtype)}; give whole numbers, or audio to `generate`."
        )
    if tensor.dim() != 3 or tensor.shape[:2] != (batch, n_q):
        raise UserError(f"the prompt's shape {list(tensor.shape)} should be [{batch}, {n_q}, frames].")
    return tensor.long()


def as_mask(keep: object) -> Tensor:
    """Return the mask of a prompt, bool [B, P] or [B, K, P]."""
    tensor = _as_tensor(
        keep, f"keep is {type(keep).__name__}; give a bool tensor, [B, frames] or [B, K, frames]"
    )
    if tensor.dtype != torch.bool or tensor.dim() not in (2, 3):
        raise UserError(
            f"keep of type {dtype_name(tensor.dtype)} and shape {list(tensor.shape)} should be bool, [B, frames] or "
            "[B, K, frames]."
        )
    return tensor


def as_region(region: object) -> tuple[float, float]:
    """Return start and end of a region in seconds."""
    try:
        start, end = (float(second) for second in cast(Iterable[Any], region))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"region is {region!r}; give its start and its end in seconds, like (2.0, 4.5)."
        ) from error
    return start, end


def _as_tensor(value: object, problem: str) -> Tensor:
    if isinstance(value, np.ndarray):
        try:  # torch takes neither negative strides nor the other byte order
            return torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))
        except TypeError as error:
            raise UserError(f"{problem}, not an array of {value.dtype}.") from error
    if not isinstance(value, Tensor):
        raise UserError(f"{problem}.")
    return value
