"""Find the folder of a model: here, or fetched from the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from magnet_train.errors import UserError, first_line

SETTINGS = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
WEIGHTS = ("*.safetensors",)
PATIENCE = 10.0  # seconds until a server that does not answer counts as none
PICKLED_WEIGHTS = ("pytorch_model.bin",)  # only where nothing better is there, and read as plain data


def find_folder(
    name: str, what: str, files: tuple[str, ...] = SETTINGS + WEIGHTS, revision: str | None = None
) -> Path:
    """Return the folder `name`, or fetch that model's files from the hub into its cache.

    Everything comes at once rather than file by file as transformers does it: without a network that answers
    in a moment, where transformers tries again for half a minute and then once more for the next file.

    Args:
        name: Folder or hub id.
        what: What it should be ("codec"), for messages.
        files: Patterns of the files to fetch.
        revision: Commit on the hub; the newest when None.

    Raises:
        UserError: It is no folder, and the hub does not have it or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{what} {name} does not exist; check the path.")
    folder = _fetch(name, what, files, revision)
    if set(WEIGHTS) <= set(files) and not any(any(folder.rglob(kind)) for kind in ("*.safetensors", "*.bin")):
        folder = _fetch(name, what, files + PICKLED_WEIGHTS, revision)
    return folder


def is_hub_id(name: str) -> bool:
    """Tell "owner/name" from a folder and from the names that we package."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def revision_of(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache (`.../snapshots/COMMIT`), None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _fetch(name: str, what: str, files: tuple[str, ...], revision: str | None) -> Path:
    refusal: Exception | None = None
    try:  # asked first, since snapshot_download waits for ever for a server that does not answer
        HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except Exception as error:  # errors of the hub and of the transport below it have no base in common
        refusal = error
    try:
        cached_only = refusal is not None
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(files), local_files_only=cached_only
        )
    except Exception as error:
        raise UserError(
            f"{what} {name} is neither a folder here nor could it be fetched from the hub "
            f"({first_line(refusal or error)}); check the name and the network, or give a local folder."
        ) from error
    return Path(folder)


def upload_folder(folder: Path, repo_id: str, private: bool, dry_run: bool = False) -> list[str]:
    """Upload a folder's files as one commit, making the repository if there is none.

    Args:
        folder: What to upload.
        repo_id: "you/name" or "name".
        private: Whether a repository made here can be seen by its owner alone.
        dry_run: Check the name and list the files; reach no network.

    Returns:
        The files' names, sorted.

    Raises:
        UserError: The name cannot be one, or the hub refuses or cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id} cannot be the name of a repository ({first_line(error)}).") from error
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    if dry_run:
        return files
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a MAGNeT model")
    except Exception as error:  # as in `_fetch`
        raise UserError(
            f"{repo_id} could not be uploaded ({first_line(error)}); check the network and `hf auth login`."
        ) from error
    return files


def unreadable(name: str, what: str, error: Exception) -> UserError:
    """Say in one sentence that a model was found and cannot be used."""
    return UserError(
        f"{what} {name} cannot be loaded ({first_line(error)}); it needs config.json and undamaged weights."
    )


def lacking(name: str, what: str, missing: set[str] | list[str]) -> UserError:
    """Say that weights are missing, where transformers would go on with random ones."""
    first = sorted(missing)[:3]
    more = f" and {len(missing) - len(first)} more" if len(missing) > len(first) else ""
    return UserError(f"{what} {name} lacks the weights {', '.join(first)}{more}; save it again.")
