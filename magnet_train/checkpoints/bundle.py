"""The model bundle: the common form of all model files, and the checks before a model is built from one.

A checkpoint that `fit` saved has these keys beside Lightning's own (loops, optimizer states, callbacks, step):

    state_dict            weights `lm.*` and, of a trained text encoder, `text.*`; the average if the run keeps one
    current_model_state   the raw weights, if the run keeps an average
    averaging_state       `n_averaged`: number of updates of the average
    magnet_train          `format`, `lm`, `text`, `codec`, `decoding`, `segment_duration` (`SETTINGS`), and as far as
                          known `licence`, `data`, `base`, `adapter` (`ORIGIN`)

An export has the weights in model.safetensors, and in config.json the fields of `magnet_train` and `training`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from magnet_train.decoding import DecodingConfig, StepProfile
from magnet_train.decoding.config import MOST_STEPS
from magnet_train.errors import UserError
from magnet_train.models.positions import POSITIONS
from magnet_train.models.transformer import LEFT_OUT
from magnet_train.storage.weight_checks import require_backed
from magnet_train.tokens import CodecInfo

UNSPECIFIED = "unspecified"  # licence
KEY, FORMAT = "magnet_train", 1
RAW_WEIGHTS, AVERAGING_STATE = "current_model_state", "averaging_state"  # keys of EMAWeightAveraging
SETTINGS = ("lm", "text", "codec", "decoding", "segment_duration")
ORIGIN = ("licence", "data", "base", "adapter")
STEPS_PROFILE = "steps_profile"  # in `training`, if `export --profile` measured one

LONGEST_CLIP = 86_400.0  # s, a day: more would fit into neither memory nor a WAV file
HIGHEST_RATE = 1_000_000  # Hz
LONGEST_SPAN = 100_000  # frames
MOST_CHANNELS = 8
LONGEST_CAPTION = 1_000_000  # tokens
NUMBERS_OF_A_LAYER = 16  # times dim²: two attentions of 4 and a feed-forward layer of 8
MARGIN, SLACK = 4, 1_000_000  # a model of at most MARGIN * stored + SLACK numbers is small enough to build
MOST_ENTRIES = 100_000  # of all lists and objects of a record together

_SIZES = ("n_q", "card", "text_dim", "dim", "num_layers")
_LM = {**dict.fromkeys((*_SIZES, "num_heads", "span_len", "subcodes_context"), int), "text_key_mask": bool}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", tuple: "a list"}
_CHOICES = {
    name: get_args(kind)
    for name, kind in get_type_hints(DecodingConfig).items()
    if get_origin(kind) is Literal
}


@dataclass(frozen=True)
class ModelBundle:
    """A model as it lies in a file: settings in primitives, weights by name."""

    source: str  # path or hub id, for messages
    lm: dict[str, Any]  # arguments of `MagnetTransformer`
    text: dict[str, Any]  # `spec()` of the text encoder
    codec: CodecInfo  # of the tokens
    decoding: DecodingConfig  # default settings of the decoder
    segment_duration: float  # longest clip (s)
    weights: dict[str, Tensor]  # `lm.*` and, of a trained text encoder, `text.*`
    codec_folder: Path | None = None  # local copy of the codec that comes with the model
    text_folder: Path | None = None  # local copy of tokenizer and text encoder
    licence: str = UNSPECIFIED  # SPDX id or a word
    training: dict[str, Any] = field(default_factory=dict)  # steps and other facts, for tables and cards
    data: dict[str, Any] = field(default_factory=dict)  # clips, hours and codec of the training data
    # Source, licence and hash of the model that training began with; empty without one.
    base: dict[str, Any] = field(default_factory=dict)
    # Rank and alpha if `weights` are only a LoRA adapter to `base`; else empty.
    adapter: dict[str, Any] = field(default_factory=dict)


def settings_record(
    lm: Mapping[str, Any],
    text: Mapping[str, Any],
    codec: CodecInfo,
    decoding: DecodingConfig,
    segment_duration: float,
) -> dict[str, Any]:
    """Return `SETTINGS` as primitives, from fields of `ModelBundle`; `bundle_from_record` reads them."""
    return {
        "lm": dict(lm),
        "text": dict(text),
        "codec": codec.to_dict(),
        "decoding": decoding.to_dict(),
        "segment_duration": segment_duration,
    }


def bundle_from_record(
    record: Mapping[str, Any], where: str, weights: dict[str, Tensor], **more: Any
) -> ModelBundle:
    """Check the record of a model file, and return it as a bundle; callers check the weights for NaN.

    Args:
        record: `SETTINGS`, and `ORIGIN` and `training` as far as known.
        where: File named in errors, here and below.
        weights: The model's weights.
        more: Remaining fields of `ModelBundle`.

    Raises:
        UserError: A setting is missing, invalid, or does not fit the weights.
    """
    missing = [name for name in SETTINGS if name not in record]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)} of its model; save or export it again.")
    facts = {name: record.get(name) or {} for name in ("training", "data", "base", "adapter")}
    objects = {name: record[name] for name in SETTINGS[:-1]} | facts
    wrong = [name for name, value in objects.items() if not isinstance(value, Mapping)]
    if wrong:
        raise UserError(f"{where} has no settings under {', '.join(wrong)}; save or export it again.")
    require_small({name: record.get(name) for name in (*SETTINGS, *ORIGIN, "training")}, where)
    require_backed(weights, where)
    require_lm(record["lm"], None if facts["adapter"] else weights, where)
    if facts["adapter"]:
        _require_adapter(facts["adapter"], weights, where)
    _require_text(record["text"], record["lm"], where)
    if STEPS_PROFILE in facts["training"]:
        StepProfile.from_record(facts["training"][STEPS_PROFILE], record["lm"]["n_q"], where)
    more |= {name: dict(value) for name, value in facts.items()}
    try:
        return ModelBundle(
            lm=dict(record["lm"]),
            text=dict(record["text"]),
            codec=_codec_of(record["codec"], where),
            decoding=_decoding_of(record["decoding"], where),
            segment_duration=_duration_of(record["segment_duration"], where),
            weights=weights,
            licence=str(record.get("licence") or UNSPECIFIED),
            **more,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where} has settings that this version cannot read ({error}); export it again."
        ) from error


def require_small(record: object, where: str) -> None:
    """Refuse a record of more than `MOST_ENTRIES` entries, repeated ones included, such as one that contains itself."""
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


def _invalid(where: str, name: str, value: Any, needed: str) -> UserError:
    return UserError(f"{where} has {name} {value!r}; it must be {needed}; save or export it again.")


def require_lm(lm: Mapping[str, Any], weights: Mapping[str, Tensor] | None, where: str) -> None:
    """Check the arguments of `MagnetTransformer`, and its sizes against the weights.

    The weights have our names or the reference's; None for an adapter's.
    """
    missing, unknown = _LM.keys() - lm.keys(), lm.keys() - _LM.keys() - LEFT_OUT.keys()
    if missing or unknown:
        what, names = ("lacks", missing) if missing else ("has unknown settings", unknown)
        listed = ", ".join(sorted(map(str, names)))
        raise UserError(
            f"{where} {what} {listed} under lm; use the version that wrote it, or export it again."
        )
    for name, kind in _LM.items():
        if type(lm[name]) is not kind:
            raise _invalid(where, name, lm[name], _KINDS[kind])
        if name in _SIZES and lm[name] < 1:
            raise _invalid(where, name, lm[name], "at least 1")
    for name in ("span_len", "subcodes_context"):
        if lm[name] > LONGEST_SPAN:
            raise _invalid(where, name, lm[name], f"at most {LONGEST_SPAN} frames")
    if lm.get("streams", 1) not in (1, 2) or type(lm.get("streams", 1)) is not int:
        raise _invalid(where, "streams", lm["streams"], "1 or 2")
    if lm.get("positions", POSITIONS[0]) not in POSITIONS:
        raise _invalid(where, "positions", lm["positions"], " or ".join(POSITIONS))
    if weights is not None:
        _require_modest(lm, weights, where)


def _require_modest(lm: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse a model far larger than its weights; smaller differences are listed when the weights are loaded."""
    stored = sum(tensor.numel() for tensor in weights.values())
    embeddings = lm["n_q"] * (2 * lm["card"] + 1) * lm["dim"] + lm["text_dim"] * lm["dim"]
    described = embeddings + lm["num_layers"] * lm["dim"] * (NUMBERS_OF_A_LAYER * lm["dim"] + 1)
    if described > MARGIN * stored + SLACK:
        sizes = ", ".join(f"{name} {lm[name]}" for name in _SIZES)
        raise UserError(
            f"{where} describes a model of {described:,} numbers ({sizes}), but its weights are {stored:,}; export or copy "
            "the model again."
        )


def _codec_of(record: Mapping[str, Any], where: str) -> CodecInfo:
    codec = CodecInfo.from_dict(record, where)
    for name, value, most in (
        ("sample_rate", codec.sample_rate, HIGHEST_RATE),
        ("frame_rate", codec.frame_rate, codec.sample_rate),
        ("channels", codec.channels, MOST_CHANNELS),
    ):
        if not 0 < value <= most:  # NaN fails as well
            raise _invalid(where, f"a codec with {name}", value, f"above 0 and at most {most}")
    return codec


def _duration_of(value: Any, where: str) -> float:
    seconds = math.nan if isinstance(value, bool | str) else float(value)
    if not 0 < seconds <= LONGEST_CLIP:
        raise _invalid(where, "segment_duration", value, f"above 0 and at most {LONGEST_CLIP:,.0f} s")
    return seconds


def _decoding_of(record: Mapping[str, Any], where: str) -> DecodingConfig:
    """Check the types and choices of decoder settings, of which some may be missing."""
    record = {**record, "decoding_steps": tuple(record["decoding_steps"])}
    defaults = {field.name: field.default for field in fields(DecodingConfig)}
    for name, value in record.items():
        kind = type(defaults.get(name, value))
        fits = isinstance(value, int | float) if kind is float else type(value) is kind
        if isinstance(value, bool) is not (kind is bool) or not fits:
            raise _invalid(where, name, value, _KINDS[kind])
    for name, choices in _CHOICES.items():
        if record.get(name, choices[0]) not in choices:
            raise _invalid(where, name, record[name], f"one of {', '.join(choices)}")
    for steps in record["decoding_steps"]:
        if type(steps) is not int or not 0 <= steps <= MOST_STEPS:
            raise _invalid(where, "decoding_steps", steps, f"whole numbers in 0..{MOST_STEPS}")
    return DecodingConfig(**record)


def _require_text(text: Mapping[str, Any], lm: Mapping[str, Any], where: str) -> None:
    width, longest = text.get("dim", lm["text_dim"]), text.get("max_length", 1)
    if type(width) is not int or width != lm["text_dim"]:
        raise _invalid(where, "a text encoder of width", width, f"the model's text_dim {lm['text_dim']}")
    if type(longest) is not int or not 0 < longest <= LONGEST_CAPTION:
        raise _invalid(where, "max_length", longest, f"in 1..{LONGEST_CAPTION}")


def _require_adapter(adapter: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    rank, alpha = adapter.get("rank"), adapter.get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _invalid(where, "an adapter with alpha", alpha, "a finite number")
    ranks = {tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name and tensor.dim() == 2}
    if type(rank) is not int or rank < 1 or ranks - {rank}:
        needed = f"that of its weights, {', '.join(map(str, ranks))}" if ranks else "at least 1"
        raise _invalid(where, "an adapter with rank", rank, needed)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights into `module`, after `require_all`."""
    require_all(module.state_dict(), weights, where)
    module.load_state_dict(dict(weights))


def require_all(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Compare names and shapes of weights with a model's own.

    Raises:
        UserError: Names are missing, unexpected or of another shape; all of them are listed.
    """
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in own]
    problems += [
        f"{name} is {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        raise UserError(
            f"the weights in {where} do not fit its settings: {'; '.join(problems)}; export or copy the model again."
        )
