"""Settings as a model file states them: each is held to its kind and range, and sizes to the weights beside them.

A file of a few bytes may say anything; nothing is built of it before this has looked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from magnet_train.checkpoints.audiocraft.names import HEAD
from magnet_train.decoding import DecodingConfig
from magnet_train.decoding.config import MOST_STEPS
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

LONGEST_CLIP = 86_400.0  # s, as in generation
HIGHEST_RATE = 1_000_000  # Hz
LONGEST_SPAN = 100_000  # frames
MOST_CHANNELS = 8
LONGEST_CAPTION = 1_000_000  # tokens
NUMBERS_OF_A_LAYER = 16  # times dim²: two attentions of 4 and a feed-forward layer of 8
MARGIN, A_LITTLE = 4, 1_000_000  # how many more numbers than stored ones cost nothing worth a word
MOST_ENTRIES = 100_000  # of all lists and objects of a record together

_SIZES = ("n_q", "card", "text_dim", "dim", "num_layers")  # which the weights show as well
_LM = {**dict.fromkeys((*_SIZES, "num_heads", "span_len", "subcodes_context"), int), "text_key_mask": bool}
_CHOICES = {
    name: get_args(kind)
    for name, kind in get_type_hints(DecodingConfig).items()
    if get_origin(kind) is Literal
}
_LAYER = re.compile(r"(?:lm\.layers|transformer\.layers)\.(\d+)\.")
_HEADS = {"lm.heads", "linears.0.weight"}
_TEXT = {"lm.text_proj.weight", "condition_provider.conditioners.description.output_proj.weight"}


def require_small(record: object, where: str) -> None:
    """Refuse a record that refers to itself or to the same parts so often that writing it out would have no end.

    Raises:
        UserError: It has more than `MOST_ENTRIES` entries, each counted as often as it is named.
    """
    waiting, seen = [record], 0
    while waiting:
        part = waiting.pop()
        seen += 1
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        if seen + len(waiting) > MOST_ENTRIES:
            raise UserError(f"{where} has settings without end; export the model again.")


def require_lm(lm: Mapping[str, Any], weights: Mapping[str, Tensor] | None, where: str) -> None:
    """Hold the arguments of `MagnetTransformer` to their kinds, and its sizes to those of the weights.

    Args:
        lm: The arguments.
        weights: By our names or the reference's; None where they are of something else, an adapter say.
        where: File named in errors.

    Raises:
        UserError: Names what is wrong.
    """
    missing, unknown = _LM.keys() - lm.keys(), lm.keys() - _LM.keys()
    if missing or unknown:
        what = (
            f"lacks {', '.join(sorted(missing))}"
            if missing
            else f"has {', '.join(sorted(map(str, unknown)))}"
        )
        raise UserError(f"{where} {what} under lm, so its settings cannot be read; export it again.")
    for name, kind in _LM.items():
        if type(lm[name]) is not kind:
            raise UserError(f"{where} has {name} {lm[name]!r}, which is no {kind.__name__}; export it again.")
    for name in ("span_len", "subcodes_context"):
        if lm[name] > LONGEST_SPAN:
            raise UserError(f"{where} has {name} {lm[name]}, more frames than any clip; export it again.")
    if min(lm[name] for name in _SIZES) < 1:
        raise UserError(f"{where} has a size below 1 ({_listed(lm)}); export it again.")
    if weights is not None:
        _require_modest(lm, weights, where)


def _require_modest(lm: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse a model far larger than its weights; a smaller difference is listed weight by weight when they are loaded."""
    stored = sum(tensor.numel() for tensor in weights.values())
    embeddings = lm["n_q"] * (2 * lm["card"] + 1) * lm["dim"] + lm["text_dim"] * lm["dim"]
    described = embeddings + lm["num_layers"] * lm["dim"] * (NUMBERS_OF_A_LAYER * lm["dim"] + 1)
    if described > MARGIN * stored + A_LITTLE:
        shown = _sizes_of(weights)
        wrong = {name: size for name, size in shown.items() if lm[name] > size}
        raise UserError(
            f"{where} describes a model of {described:,} numbers ({_listed(lm)}), but its weights are {stored:,}"
            + (f" ({_listed(wrong)})" if wrong else "")
            + "; export or copy the model again."
        )


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {sizes[name]}" for name in _SIZES if name in sizes)


def _sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Read sizes off the weights, those that they show: what is missing or misshapen is listed by whoever loads them."""
    sizes: dict[str, int] = {}
    for name in _HEADS & weights.keys():
        *_, sizes["card"], sizes["dim"] = (1, 1, *weights[name].shape)
    heads = sum(bool(HEAD.fullmatch(name)) for name in weights)
    if "lm.heads" in weights and weights["lm.heads"].dim() == 3:
        heads = len(weights["lm.heads"])
    if heads:
        sizes["n_q"] = heads
    for name in _TEXT & weights.keys():
        sizes["text_dim"] = weights[name].shape[-1]
    layers = {found[1] for name in weights if (found := _LAYER.match(name))}
    if layers:
        sizes["num_layers"] = len(layers)
    return sizes


def require_codec(codec: CodecInfo, where: str) -> None:
    """Refuse rates and sizes that no codec has."""
    for name, value, most in (
        ("sample_rate", codec.sample_rate, HIGHEST_RATE),
        ("frame_rate", codec.frame_rate, codec.sample_rate),
        ("channels", codec.channels, MOST_CHANNELS),
    ):
        if not 0 < value <= most:  # NaN fails as well
            raise UserError(
                f"{where} has a codec of {name} {value}; it must lie above 0 and at most at {most}."
            )


def duration_of(value: Any, where: str) -> float:
    """Read the longest clip in seconds."""
    seconds = math.nan if isinstance(value, bool | str) else float(value)
    if not 0 < seconds <= LONGEST_CLIP:
        raise UserError(
            f"{where} has segment_duration {value!r}; it must lie above 0 and at most at {LONGEST_CLIP:,.0f} s; "
            "export it again."
        )
    return seconds


def decoding_of(record: Mapping[str, Any], where: str) -> DecodingConfig:
    """Read the sampler's settings.

    Raises:
        UserError: One is of another kind or out of range.
        TypeError: One is unknown.
    """
    defaults = {field.name: field.default for field in fields(DecodingConfig)}
    for name, value in record.items():
        kind = type(defaults.get(name, value))
        fits = isinstance(value, int | float) if kind is float else type(value) is kind
        if isinstance(value, bool) is not (kind is bool) or not fits:
            raise UserError(f"{where} has {name} {value!r}, which is no {kind.__name__}; export it again.")
    for name, names in _CHOICES.items():
        if record.get(name, names[0]) not in names:
            raise UserError(f"{where} has {name} {record[name]!r}; it must be one of {', '.join(names)}.")
    decoding = DecodingConfig(**record)
    for steps in decoding.decoding_steps:
        if type(steps) is not int or not 0 <= steps <= MOST_STEPS:
            raise UserError(
                f"{where} has decoding_steps {steps!r} for a codebook; it must be a whole number in 0..{MOST_STEPS}; "
                "export it again."
            )
    return decoding


def require_text(text: Mapping[str, Any], lm: Mapping[str, Any], where: str) -> None:
    """Hold the text encoder's description to the model's: a vector for each word or label is as wide as the model asks."""
    width = text.get("dim", lm["text_dim"])
    if type(width) is not int or width != lm["text_dim"]:
        raise UserError(
            f"{where} has a text encoder of width {width!r} for a model of text_dim {lm['text_dim']}; export it again."
        )
    longest = text.get("max_length", 1)
    if type(longest) is not int or not 0 < longest <= LONGEST_CAPTION:
        raise UserError(
            f"{where} has max_length {longest!r}; it must lie in 1..{LONGEST_CAPTION}; export it again."
        )


def require_adapter(adapter: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    """Hold rank and alpha of a LoRA adapter to its weights."""
    rank, alpha = adapter.get("rank"), adapter.get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(
            f"{where} has an adapter of alpha {alpha!r}, which is no finite number; save it again."
        )
    if type(rank) is not int or rank < 1:
        raise UserError(f"{where} has an adapter of rank {rank!r}; it must be at least 1; save it again.")
    for name, tensor in weights.items():
        if "lora_A" in name and tensor.dim() == 2 and tensor.shape[0] != rank:
            raise UserError(
                f"{where} has an adapter of rank {rank}, but {name} is of {tensor.shape[0]}; save it again."
            )
