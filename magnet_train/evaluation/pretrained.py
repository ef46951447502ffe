"""Load a model that judges sound from a folder or the hub: no pickle, no code of others, no missing weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from magnet_train.errors import UserError
from magnet_train.storage.hub import find_folder, lacking, revision_of, unreadable

logging.disable_progress_bar()

_WEIGHTS = ("*.safetensors", "*.bin")  # the first kind that is there is what transformers reads


@dataclass(frozen=True)
class Origin:
    """Which model it was, for a report that others can repeat.

    Args:
        id: Folder or hub id, as it was asked for.
        revision: Commit on the hub; None for a folder.
        sha256: Of the weights' files in the order of their names.
    """

    id: str
    revision: str | None
    sha256: str


def load_pretrained(
    kind: Any, extractor: Any, model_type: str, name: str, what: str, device: str
) -> tuple[Any, Any, Path, Origin]:
    """Load a transformers model and its feature extractor.

    Args:
        kind: Class of the model.
        extractor: Class of its feature extractor.
        model_type: What config.json must say.
        name: Folder or hub id.
        what: What it should be, for messages.
        device: Where to compute.

    Returns:
        Model in evaluation mode, feature extractor, their folder, and where they come from.

    Raises:
        UserError: Nothing readable of that type is there, or the hub cannot be reached.
    """
    folder = find_folder(name, what)
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if found != model_type:
            raise UserError(f"{what} {name} is of type {found} and has to be {model_type}; choose another.")
        model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds, down to those of safetensors
        raise unreadable(name, what, error) from error
    if report["missing_keys"]:
        raise lacking(name, what, report["missing_keys"])
    try:
        features = extractor.from_pretrained(folder)
    except Exception as error:
        raise UserError(
            f"{what} {name} has no readable preprocessor_config.json; save its feature extractor beside it."
        ) from error
    return model.eval().to(device), features, folder, Origin(name, revision_of(folder), _sha256(folder))


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in next((found for kind in _WEIGHTS if (found := sorted(folder.glob(kind)))), []):
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
