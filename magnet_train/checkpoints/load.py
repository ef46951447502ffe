"""Tell formats apart and read whichever it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from magnet_train.checkpoints.adapter import merge_adapter, weights_sha256
from magnet_train.checkpoints.audiocraft.read import CODEC_FILE, STATE_FILE, is_audiocraft, read_audiocraft
from magnet_train.checkpoints.bundle import ModelBundle, load_plain
from magnet_train.checkpoints.export import CARD, CONFIG, load_export
from magnet_train.checkpoints.licence import RELEASED, UNSPECIFIED
from magnet_train.checkpoints.lightning import read_checkpoint
from magnet_train.errors import UserError
from magnet_train.storage.hub import SETTINGS, WEIGHTS, find_folder

FILE_SUFFIXES = (".ckpt", ".bin", ".th", ".pt")
HUB_FILES = (*SETTINGS, *WEIGHTS, STATE_FILE, CODEC_FILE, CARD)
RELEASES = ("facebook/magnet-", "facebook/audio-magnet-")


def read_model(path_or_hub_id: str | Path, raw: bool = False) -> ModelBundle:
    """Read a model in any format that we know; an adapter with the model that it belongs to.

    Args and errors as in `read_stored`.

    Raises:
        UserError: As there, or an adapter's base is gone or has changed.
    """
    stored = read_stored(path_or_hub_id, raw)
    return stored if not stored.adapter else merge_adapter(_base_of(stored), stored)


def _base_of(adapter: ModelBundle) -> ModelBundle:
    source = str(adapter.base.get("source"))
    try:
        base = read_model(source)
    except UserError as error:
        raise UserError(
            f"{adapter.source} holds an adapter to {source}, which cannot be read ({error}) Put it there, or name the "
            "base as the model and this file as --adapter."
        ) from error
    if weights_sha256(base.weights) != adapter.base.get("weights_sha256"):
        raise UserError(
            f"{adapter.source} holds an adapter to {source}, whose weights have changed since; name the right base as "
            "the model and this file as --adapter."
        )
    return base


def read_stored(path_or_hub_id: str | Path, raw: bool = False, mapped: bool = False) -> ModelBundle:
    """Read what lies there: a model in any format that we know, or an adapter alone.

    Args:
        path_or_hub_id: A folder that `export` wrote; a checkpoint that `fit` saved; a release of audiocraft
            (its folder or `state_dict.bin`) or a training checkpoint of it; or a hub id that holds one of these.
        raw: Take the weights as they were trained instead of their moving average.
        mapped: As in `load_plain`.

    Raises:
        UserError: There is nothing, nothing readable, or `raw` where there is only one set of weights.
    """
    path = Path(path_or_hub_id)
    if path.is_file():
        return _read_file(path, raw, mapped)
    if not path.exists() and path.suffix in FILE_SUFFIXES:
        raise UserError(f"{path} does not exist; check the path.")
    fetched = not path.exists()
    if fetched:
        path = find_folder(str(path_or_hub_id), "model", HUB_FILES)
    stored = _read_folder(path)
    if raw:
        raise _only_one_set(path)
    if fetched:
        stored = replace(stored, source=str(path_or_hub_id))
        if stored.licence == UNSPECIFIED and str(path_or_hub_id).startswith(RELEASES):
            stored = replace(stored, licence=RELEASED)
    return stored


def _read_folder(path: Path) -> ModelBundle:
    if (path / CONFIG).is_file():
        return load_export(path)
    if (path / STATE_FILE).is_file():
        return read_audiocraft(path)
    raise UserError(
        f"{path} holds no model (neither {CONFIG} nor {STATE_FILE}); name a folder that `export` wrote, a release "
        "of audiocraft, or a .ckpt."
    )


def _read_file(path: Path, raw: bool, mapped: bool) -> ModelBundle:
    package = load_plain(path, mapped)
    if not is_audiocraft(package):
        return read_checkpoint(path, raw, package)
    if raw:
        raise _only_one_set(path)
    return read_audiocraft(path, package)


def _only_one_set(path: Path) -> UserError:
    return UserError(
        f"{path} holds one set of weights, so there are no raw ones beside it; leave --raw out, or name the "
        "checkpoint that `fit` saved."
    )
