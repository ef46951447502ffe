"""Checks of the settings in a model file, before anything is built from them: kinds, ranges, and sizes against weights."""

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

LONGEST_CLIP = 86_400.0  # s, a day: more would fit into neither memory nor a WAV file
HIGHEST_RATE = 1_000_000  # Hz
LONGEST_SPAN = 100_000  # frames
MOST_CHANNELS = 8
LONGEST_CAPTION = 1_000_000  # tokens
NUMBERS_OF_A_LAYER = 16  # times dim²: two attentions of 4 and a feed-forward layer of 8
MARGIN, SLACK = 4, 1_000_000  # a model of at most MARGIN * stored + SLACK numbers is small enough to build
MOST_ENTRIES = 100_000  # of all lists and objects of a record together

_SIZES = ("n_q", "card", "text_dim", "dim", "num_layers")  # sizes that the weights show as well
_LM = {**dict.fromkeys((*_SIZES, "num_heads", "span_len", "subcodes_context"), int), "text_key_mask": bool}
_ARTICLE = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", tuple: "a list"}
_CHOICES = {
    name: get_args(kind)
    for name, kind in get_type_hints(DecodingConfig).items()
    if get_origin(kind) is Literal
}
_LAYER = re.compile(r"(?:lm\.layers|transformer\.layers)\.(\d+)\.")
_HEADS = {"lm.heads", "linears.0.weight"}
_TEXT = {"lm.text_proj.weight", "condition_provider.conditioners.description.output_proj.weight"}


def require_small(record: object, where: str) -> None:
    """Refuse a record that contains itself, or the same parts so often that writing it out would not end.

    Raises:
        UserError: The record has more than `MOST_ENTRIES` entries, repeated ones included.
    """
    pending, seen = [record], 0
    while pending:
        part = pending.pop()
        seen += 1
        if isinstance(part, Mapping):
            pending += part.values()
        elif isinstance(part, list | tuple):
            pending += part
        if seen + len(pending) > MOST_ENTRIES:
            raise UserError(f"{where} has more than {MOST_ENTRIES} settings; export the model again.")


def require_lm(lm: Mapping[str, Any], weights: Mapping[str, Tensor] | None, where: str) -> None:
    """Check the arguments of `MagnetTransformer`, and its sizes against the weights.

    Args:
        lm: The arguments.
        weights: By our names or the reference's; None for an adapter's.
        where: File named in errors.

    Raises:
        UserError: An argument is missing, unknown, of another type or out of range.
    """
    missing, unknown = _LM.keys() - lm.keys(), lm.keys() - _LM.keys()
    if missing or unknown:
        what, names = ("lacks", missing) if missing else ("has unknown", unknown)
        raise UserError(f"{where} {what} {', '.join(sorted(map(str, names)))} under lm; export it again.")
    for name, kind in _LM.items():
        if type(lm[name]) is not kind:
            raise UserError(f"{where} has {name} {lm[name]!r} instead of {_ARTICLE[kind]}; export it again.")
    for name in ("span_len", "subcodes_context"):
        if lm[name] > LONGEST_SPAN:
            raise UserError(f"{where} has {name} {lm[name]}, more frames than any clip; export it again.")
    if min(lm[name] for name in _SIZES) < 1:
        raise UserError(f"{where} has a size below 1 ({_listed(lm)}); export it again.")
    if weights is not None:
        _require_modest(lm, weights, where)


def _require_modest(lm: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse a model far larger than its weights; smaller differences are listed when the weights are loaded."""
    stored = sum(tensor.numel() for tensor in weights.values())
    embeddings = lm["n_q"] * (2 * lm["card"] + 1) * lm["dim"] + lm["text_dim"] * lm["dim"]
    described = embeddings + lm["num_layers"] * lm["dim"] * (NUMBERS_OF_A_LAYER * lm["dim"] + 1)
    if described > MARGIN * stored + SLACK:
        wrong = {name: size for name, size in _sizes_of(weights).items() if lm[name] > size}
        raise UserError(
            f"{where} describes a model of {described:,} numbers ({_listed(lm)}), but its weights are {stored:,}"
            + (f" ({_listed(wrong)})" if wrong else "")
            + "; export or copy the model again."
        )


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {sizes[name]}" for name in _SIZES if name in sizes)


def _sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes that the shapes of the weights show."""
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
    """Raise `UserError` for rates and sizes out of range."""
    for name, value, most in (
        ("sample_rate", codec.sample_rate, HIGHEST_RATE),
        ("frame_rate", codec.frame_rate, codec.sample_rate),
        ("channels", codec.channels, MOST_CHANNELS),
    ):
        if not 0 < value <= most:  # NaN fails as well
            raise UserError(
                f"{where} has a codec with {name} {value}; it must be above 0 and at most {most}."
            )


def duration_of(value: Any, where: str) -> float:
    """Return the longest clip in seconds; raises `UserError` if it is out of range."""
    seconds = math.nan if isinstance(value, bool | str) else float(value)
    if not 0 < seconds <= LONGEST_CLIP:
        raise UserError(
            f"{where} has segment_duration {value!r}; it must be above 0 and at most {LONGEST_CLIP:,.0f} s; export it "
            "again."
        )
    return seconds


def decoding_of(record: Mapping[str, Any], where: str) -> DecodingConfig:
    """Return the settings of the decoder.

    Raises:
        UserError: A setting is of another type or out of range.
        TypeError: A setting is unknown.
    """
    defaults = {field.name: field.default for field in fields(DecodingConfig)}
    for name, value in record.items():
        kind = type(defaults.get(name, value))
        fits = isinstance(value, int | float) if kind is float else type(value) is kind
        if isinstance(value, bool) is not (kind is bool) or not fits:
            raise UserError(f"{where} has {name} {value!r} instead of {_ARTICLE[kind]}; export it again.")
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
    """Raise `UserError` if the text encoder's width is not the model's, or its longest caption is out of range."""
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
    """Raise `UserError` if alpha of a LoRA adapter is not a finite number, or its rank is not that of the weights."""
    rank, alpha = adapter.get("rank"), adapter.get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(
            f"{where} has an adapter with alpha {alpha!r} instead of a finite number; save it again."
        )
    if type(rank) is not int or rank < 1:
        raise UserError(f"{where} has an adapter with rank {rank!r}; it must be at least 1; save it again.")
    for name, tensor in weights.items():
        if "lora_A" in name and tensor.dim() == 2 and tensor.shape[0] != rank:
            raise UserError(
                f"{where} has an adapter with rank {rank}, but {name} has {tensor.shape[0]}; save it again."
            )
