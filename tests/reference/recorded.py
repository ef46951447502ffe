"""Where the recorded numbers are: `MAGNET_REFERENCE_DIR`, or the copy beside this file.

Every case of every folder is a test of its own. Nothing here knows the names of folders or cases.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from magnet_train import Magnet
from magnet_train.checkpoints.audiocraft.read import read_audiocraft
from magnet_train.models import MagnetTransformer

REFERENCE = Path(os.environ.get("MAGNET_REFERENCE_DIR", Path(__file__).parent / "data")).resolve()


def read_json(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text())


@lru_cache
def read_tensors(name: str) -> dict[str, Tensor]:
    return load_file(REFERENCE / name)


def cases_of(kind: str, file: str = "cases.json") -> list[tuple[str, dict[str, Any]]]:
    """All (model, case) pairs of the folders `kind_<model>`."""
    pairs = []
    for folder in sorted(REFERENCE.glob(f"{kind}_*")):
        listed = json.loads((folder / file).read_text())
        listed = listed["cases"] if isinstance(listed, dict) else listed
        pairs += [(folder.name.removeprefix(f"{kind}_"), case) for case in listed]
    return pairs


def case_id(value: Any) -> str:
    return str(value.get("name") or value.get("case")) if isinstance(value, dict) else str(value)


@lru_cache
def load_magnet(model: str) -> Magnet:
    """The way that a user takes: the release folder in, everything else from what it says."""
    return Magnet.from_pretrained(REFERENCE / f"lm_{model}")


def load_lm(model: str) -> MagnetTransformer:
    return load_magnet(model).lm


@lru_cache
def table_frames(model: str) -> int:
    stored = read_audiocraft(REFERENCE / f"lm_{model}")
    return int(stored.segment_duration * stored.codec.frame_rate)


@lru_cache
def load_conditions(model: str, name: str) -> tuple[Tensor, Tensor]:
    """Hidden states [2B, S, text_dim] and mask bool [2B, S]; the second half is the null condition."""
    tensors = read_tensors(f"lm_{model}/conditions.safetensors")
    return tensors[f"{name}.hidden"], tensors[f"{name}.mask"].bool()
