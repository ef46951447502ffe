"""Our export: a self-contained folder with safetensors, config.json and a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from magnet_train.checkpoints.audiocraft.names import CODEC_FILE, THEIR_STORE
from magnet_train.checkpoints.bundle import ModelBundle, bundle_from_record, settings_record
from magnet_train.checkpoints.card import model_card
from magnet_train.errors import UserError, first_line
from magnet_train.storage.atomic_io import sync
from magnet_train.storage.plain_text import load_json, read_text
from magnet_train.storage.weight_checks import require_finite

FORMAT = "magnet-train/1"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
CODEC_FOLDER, TEXT_FOLDER = "codec", "text"
CODEC_FILES = ("config.json", "preprocessor_config.json", WEIGHTS)


def save_export(model: ModelBundle, folder: Path) -> None:
    """Write a model, with its local codec and text folders, into a new or empty folder, all or nothing.

    Raises:
        UserError: The target is not empty, or cannot be written.
    """
    with whole_folder(folder) as partial:
        _write(model, partial)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and move it there unless the block raises.

    Raises:
        UserError: The target is not empty, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something already; choose another --out or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield partial
            partial.chmod(0o755)  # mkdtemp and safetensors give access to the owner alone
            for path in partial.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
                sync(path)
            sync(partial)
            if folder.exists():
                folder.rmdir()
            os.replace(partial, folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own error
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder} cannot be written ({reason}); make room or choose another --out."
        ) from error


def load_export(folder: Path) -> ModelBundle:
    """Read a folder that `save_export` wrote.

    Raises:
        UserError: A file is missing or damaged, or the format is unknown.
    """
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    try:
        config = load_json(read_text(config_file))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{config_file} cannot be read ({error}); name a folder that `export` wrote."
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{config_file} is not of format {FORMAT}; name a folder that `export` wrote.")
    try:
        weights = load_file(weights_file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{weights_file} cannot be read ({error}); copy or export the model again."
        ) from error
    bundle = bundle_from_record(
        config,
        str(config_file),
        weights,
        source=str(folder),
        codec_folder=_if_there(folder / CODEC_FOLDER),
        text_folder=_if_there(folder / TEXT_FOLDER),
    )
    require_finite(weights, str(config_file))
    if bundle.text_folder is not None and bundle.text.get("trainable") is True:
        _check_trained_text(bundle, bundle.text_folder)
    return bundle


def _check_trained_text(bundle: ModelBundle, folder: Path) -> None:
    """Compare the configuration of a trained text encoder with its weights, which lie beside the model's."""
    from magnet_train.text.t5 import require_modest_t5  # transformers takes seconds

    size = sum(tensor.nbytes for name, tensor in bundle.weights.items() if name.startswith("text."))
    try:
        require_modest_t5(folder, str(folder), size)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not the folder of a text encoder ({first_line(error)}); export the model again."
        ) from error


def _write(model: ModelBundle, folder: Path) -> None:
    # The copies are named by their folder in the export, not by a path of this machine.
    local = Path(model.codec.id).is_absolute() and not model.codec.id.startswith(THEIR_STORE)
    if model.codec_folder is not None and local:
        model = replace(model, codec=replace(model.codec, id=CODEC_FOLDER))
    text = Path(str(model.text.get("name")))
    if model.text_folder is not None and (text.exists() or text.is_absolute()):
        model = replace(model, text={**model.text, "name": TEXT_FOLDER})
    # safetensors refuses tied tensors (a T5's embedding is twice in its state dict), so each is a copy.
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in model.weights.items()}
    save_file(weights, folder / WEIGHTS)
    config: dict[str, Any] = {
        "format": FORMAT,
        **settings_record(model.lm, model.text, model.codec, model.decoding, model.segment_duration),
        "licence": model.licence,
        "training": model.training,
        "data": model.data,
        "base": model.base,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if model.codec_folder is not None:
        _copy_codec(model.codec_folder, folder / CODEC_FOLDER)
    if model.text_folder is not None:
        shutil.copytree(model.text_folder, folder / TEXT_FOLDER)
    (folder / CARD).write_text(model_card(model), encoding="utf-8")


def _copy_codec(source: Path, target: Path) -> None:
    """Copy the files that loading the codec needs; its weights must not be a pickle."""
    theirs = (source / CODEC_FILE).is_file()  # in audiocraft's own format
    if not theirs and not (source / WEIGHTS).is_file():
        raise UserError(
            f"codec {source} has no {WEIGHTS} to put into the export; save it again with save_pretrained of "
            "transformers, and tokenize and train with that folder."
        )
    target.mkdir()
    for file in (CODEC_FILE,) if theirs else CODEC_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)


def _if_there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None
