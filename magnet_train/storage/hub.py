"""Find pretrained models in folders or on the Hugging Face hub, load them, and upload models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from magnet_train.errors import UserError, first_line
from magnet_train.storage.plain_text import few

if TYPE_CHECKING:
    import torch

SETTINGS = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
WEIGHTS = ("*.safetensors",)
DATASETS = "hf://datasets/"
PATIENCE = 10.0  # seconds to wait for the server
PICKLED_WEIGHTS = ("pytorch_model.bin",)  # only if there are no safetensors; read as plain data


def find_folder(
    name: str, what: str, files: tuple[str, ...] = SETTINGS + WEIGHTS, revision: str | None = None
) -> Path:
    """Return the folder `name`, or download that model from the hub into its cache.

    Without a network this fails at once, where transformers retries each file for half a minute.

    Args:
        name: Folder or hub id.
        what: Kind of model ("codec"), for messages.
        files: Patterns of the files to download.
        revision: Commit on the hub; the newest when None.

    Raises:
        UserError: There is no such folder, and the hub does not have the model or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{what} {name} does not exist; check the path.")
    folder = _fetch(name, what, files, revision)
    if set(WEIGHTS) <= set(files) and not any(any(folder.rglob(kind)) for kind in ("*.safetensors", "*.bin")):
        folder = _fetch(name, what, files + PICKLED_WEIGHTS, revision)
    return folder


def recorded_name(name: str) -> str:
    """Return the name that other commands find a model by, wherever they run: of a local folder its full path."""
    return os.path.abspath(name) if Path(name).is_dir() else name


def find_dataset(url: str) -> Path:
    """Download a data set, or a part of it, into the hub's cache.

    Args:
        url: hf://datasets/OWNER/NAME, optionally @REVISION, and a folder, a file, or a pattern such as data/train-*.

    Returns:
        Its folder, file or pattern in the cache.

    Raises:
        UserError: The hub does not have it or cannot be reached.
    """
    owner, _, rest = url.removeprefix(DATASETS).partition("/")
    repository, _, part = rest.partition("/")
    name, _, revision = repository.partition("@")
    part = part.rstrip("/")
    if not (owner and name):
        raise UserError(f"{url} does not name a data set; write {DATASETS}OWNER/NAME.")
    files = (part, f"{part}/*") if part else ("*",)
    folder = _fetch(f"{owner}/{name}", "data set", files, revision or None, "dataset")
    if part and not any(folder.glob(part)):
        raise UserError(f"data set {owner}/{name} has no {part}; check {url}.")
    return folder / part


def is_hub_id(name: str) -> bool:
    """Return whether a name is "owner/name", rather than a folder or the name of a packaged model."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def revision_of(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache (`.../snapshots/COMMIT`), None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _fetch(
    name: str, what: str, files: tuple[str, ...], revision: str | None, repo_type: str = "model"
) -> Path:
    refusal: Exception | None = None
    try:  # first, since snapshot_download has no timeout
        HfApi().repo_info(name, revision=revision, repo_type=repo_type, timeout=PATIENCE)
    except Exception as error:  # errors of the hub and of its transport have no common base
        refusal = error
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            repo_type=repo_type,
            allow_patterns=list(files),
            local_files_only=refusal is not None,
        )
    except Exception as error:
        raise UserError(
            f"{what} {name} is neither a folder here nor could it be downloaded from the hub "
            f"({first_line(refusal or error)}); check the name and the network, or give a local folder."
        ) from error
    return Path(folder)


def load_pretrained(
    kind: Any,
    folder: Path,
    name: str,
    what: str,
    model_type: str | None = None,
    *,
    remedy: str = "choose another",
    check: Callable[[], None] | None = None,
    optional: str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Load a transformers model in evaluation mode; neither code nor pickles of the folder are run.

    Args:
        kind: Class of the model.
        folder: From `find_folder`, with the same `name` and `what`, for messages.
        model_type: That config.json must have; None takes any.
        remedy: Remedy in the error for another type.
        check: Called before memory is allocated for the model.
        optional: Prefix of the names of weights that may be missing.
        dtype: Type of the weights; None for float32.

    Raises:
        UserError: The model is of another type, cannot be read, or lacks weights.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # for files that load in milliseconds
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers warns about missing weights, which are an error here
    try:
        if model_type is not None:
            found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            if found != model_type:
                has = f"model_type {found}" if found else "no model_type"
                raise UserError(
                    f"{what} {name} is not a transformers model of type {model_type}: its config.json has {has}; "
                    f"{remedy}."
                )
        if check is not None:
            check()
        model, report = kind.from_pretrained(
            folder, dtype=dtype or torch.float32, output_loading_info=True, weights_only=True
        )
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds, down to those of safetensors
        raise unreadable(name, what, error) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(key for key in report["missing_keys"] if not (optional and key.startswith(optional)))
    if missing:
        raise UserError(f"{what} {name} lacks the weights {few(missing)}; save it again, or choose another.")
    return model.eval()


def unreadable(name: str, what: str, error: Exception) -> UserError:
    """Return the error for a model that was found but cannot be loaded."""
    return UserError(
        f"{what} {name} cannot be loaded ({first_line(error)}); it needs config.json and undamaged weights."
    )


def upload_folder(folder: Path, repo_id: str, private: bool, dry_run: bool) -> list[str]:
    """Upload a folder as one commit, and return the sorted names of its files; see `Magnet.push_to_hub`.

    Raises:
        UserError: The name is invalid, or the hub refuses or cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{repo_id} cannot be the name of a repository ({first_line(error)}); give OWNER/NAME."
        ) from error
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    if dry_run:
        return files
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a MAGNeT model")
    except Exception as error:  # see `_fetch`
        raise UserError(
            f"{repo_id} could not be uploaded ({first_line(error)}); check the network and `hf auth login`."
        ) from error
    return files
