"""The model bundle: what every file of a model is read as, and the checks on the way.

A Lightning checkpoint of ours holds, beside the state of the training, `state_dict` and under `KEY` the format number, the
settings (`SETTINGS`) and the origin (`ORIGIN`). An export's config.json has the same fields.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magnet_train.checkpoints.audiocraft.omegaconf import STAND_INS
from magnet_train.checkpoints.settings import (
    decoding_of,
    duration_of,
    require_adapter,
    require_codec,
    require_lm,
    require_small,
    require_text,
)
from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError, cannot_read
from magnet_train.storage.weight_checks import require_backed, require_finite
from magnet_train.tokens import CodecInfo

UNSPECIFIED = "unspecified"  # licence
KEY = "magnet_train"
FORMAT = 1
RAW_STATE = "current_model_state"  # Lightning's EMA callback keeps the averaged weights in `state_dict`
SETTINGS = ("lm", "text", "codec", "decoding", "segment_duration")
ORIGIN = ("licence", "data", "base", "adapter")

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how torch's files begin, new and old


@dataclass(frozen=True)
class ModelBundle:
    """A model as it lies in a file: settings in primitives, weights by name.

    Args:
        source: Path or hub id, for messages.
        lm: Arguments of `MagnetTransformer`.
        text: `spec()` of the text encoder.
        codec: The codec of the tokens.
        decoding: Default settings of the decoder.
        segment_duration: Longest clip (s).
        weights: Tensors named `lm.*` and, for a trained text encoder, `text.*`.
        codec_folder: Local copy of the codec that travels with the model.
        text_folder: Local copy of tokenizer and text encoder.
        licence: SPDX id or a word.
        training: Steps and other facts, for tables and cards.
        data: Clips, hours and codec of the training data.
        base: Source, licence and hash of the model that training began with; empty without one.
        adapter: Rank and alpha if `weights` are only a LoRA adapter to `base`; else empty.
    """

    source: str
    lm: dict[str, Any]
    text: dict[str, Any]
    codec: CodecInfo
    decoding: DecodingConfig
    segment_duration: float
    weights: dict[str, Tensor]
    codec_folder: Path | None = None
    text_folder: Path | None = None
    licence: str = UNSPECIFIED
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)


def bundle_from_record(
    record: Mapping[str, Any], where: str, weights: dict[str, Tensor], **more: Any
) -> ModelBundle:
    """Check the record of a checkpoint or config.json, and return it as a bundle.

    Args:
        record: `SETTINGS`, and `ORIGIN` as far as known.
        where: File named in errors.
        weights: The model's weights.
        more: Remaining fields of `ModelBundle`.

    Raises:
        UserError: A setting is missing, invalid, or does not fit the weights; or weights are NaN.
    """
    missing = [name for name in SETTINGS if name not in record]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)} of its model; save or export it again.")
    wrong = [name for name in SETTINGS[:-1] if not isinstance(record[name], Mapping)]
    if wrong:
        raise UserError(f"{where} has no fields under {', '.join(wrong)}; save or export it again.")
    require_small({name: record.get(name) for name in (*SETTINGS, *ORIGIN, "training")}, where)
    require_backed(weights, where)
    adapter = dict(record.get("adapter") or {})
    require_lm(record["lm"], None if adapter else weights, where)
    if adapter:
        require_adapter(adapter, weights, where)
    require_text(record["text"], record["lm"], where)
    require_finite(weights, where)
    try:
        decoding = {**record["decoding"], "decoding_steps": tuple(record["decoding"]["decoding_steps"])}
        codec = CodecInfo.from_dict(record["codec"], where)
        require_codec(codec, where)
        return ModelBundle(
            lm=dict(record["lm"]),
            text=dict(record["text"]),
            codec=codec,
            decoding=decoding_of(decoding, where),
            segment_duration=duration_of(record["segment_duration"], where),
            weights=weights,
            licence=str(record.get("licence") or UNSPECIFIED),
            data=dict(record.get("data") or {}),
            base=dict(record.get("base") or {}),
            adapter=adapter,
            **more,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where} has settings that this version cannot read ({error}); export it again."
        ) from error


def load_plain(path: Path, mapped: bool = False) -> Any:
    """Read a torch file without running code.

    Args:
        path: The file.
        mapped: Map the file instead of reading it: for short use, since the file must not change meanwhile.

    Raises:
        UserError: The file is missing, damaged, or holds more than plain data.
    """
    _require_torch_file(path)
    _require_stored_as_is(path)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path)
            )
    except (
        pickle.UnpicklingError,
        LookupError,
    ) as error:  # torch's own message advises how to run such a file
        raise UserError(
            f"{path} is damaged or holds objects that could run code, so it was not loaded; save it again as "
            "plain tensors."
        ) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except (RuntimeError, EOFError, ValueError) as error:  # torch's own message is about its reader
        raise UserError(f"{path} is cut short or damaged; copy or save it again.") from error


def _require_torch_file(path: Path) -> None:
    """Raise `UserError` for a file that torch cannot have written, or that cannot be opened."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    if not start.startswith((_ZIP, _PICKLE)):
        raise UserError(
            f"{path} is not a checkpoint or a weights file of torch; check the path, or copy it again."
        )


def _require_stored_as_is(path: Path) -> None:
    """Raise `UserError` for a compressed or damaged archive: torch writes its files uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is cut short or damaged; copy or save it again.") from error
    if unpacked > path.stat().st_size:
        raise UserError(f"{path} is compressed, which torch's own files are not; save it again.")


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights into `module`; errors as in `require_all`."""
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
            f"{where} does not fit its own description: {'; '.join(problems)}; export or copy the model again."
        )
