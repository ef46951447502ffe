"""Find the folder of a model: here, or fetched from the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from magnet_train.errors import UserError

SETTINGS = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
WEIGHTS = ("*.safetensors",)
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
    if name.count("/") > 1 or name.startswith((".", "/", "~")):  # no hub id looks like this
        raise UserError(f"{what} {name} does not exist; check the path.")
    folder = _fetch(name, what, files, revision)
    if set(WEIGHTS) <= set(files) and not any(folder.rglob("*.safetensors")):
        folder = _fetch(name, what, files + PICKLED_WEIGHTS, revision)
    return folder


def revision_of(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache (`.../snapshots/COMMIT`), None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _fetch(name: str, what: str, files: tuple[str, ...], revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # the kinds that all of the hub's errors, and its name check, are
        raise UserError(
            f"{what} {name} is neither a folder here nor could it be fetched from the hub "
            f"({first_line(error)}); check the name and the network, or give a local folder."
        ) from error


def unreadable(name: str, what: str, error: Exception) -> UserError:
    """Say in one sentence that a model was found and cannot be used."""
    return UserError(
        f"{what} {name} cannot be loaded ({first_line(error)}); it needs config.json and undamaged weights."
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; libraries add pages of advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".;: ")
