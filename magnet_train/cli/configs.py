"""Find the YAML files that `-c` names, those of the package too, and refuse what is none."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from magnet_train.errors import UserError

CONFIG_OPTIONS = ("-c", "--config")


def packaged_config(name: str) -> str:
    """Find `configs/...yaml` in the working directory, else the copy in the package."""
    if Path(name).exists() or not name.startswith("configs/"):
        return name
    shipped = resources.files("magnet_train") / name
    return str(shipped) if shipped.is_file() else name


def with_found_configs(arguments: Sequence[str]) -> list[str]:
    """Put the files that are meant in place of the names.

    Args:
        arguments: The words of a command.

    Raises:
        UserError: One is missing, cannot be read or is not YAML.
    """
    found = list(arguments)
    for index, word in enumerate(found):
        if word in CONFIG_OPTIONS and index + 1 < len(found):
            found[index + 1] = packaged_config(found[index + 1])
            _check(found[index + 1])
        elif word.startswith("--config="):
            name = packaged_config(word.removeprefix("--config="))
            _check(name)
            found[index] = f"--config={name}"
    return found


def _check(name: str) -> None:
    """Find what the parser would report without the file's name."""
    path = Path(name)
    if not path.is_file():
        raise UserError(f"there is no file {name}; {_others(name)}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}); check its permissions.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{name} is not valid YAML ({' '.join(str(error).split())}); mend it there."
        ) from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"holds no settings but '{str(content)[:60]}'"
        raise UserError(f"{name} {what}; write settings as `key: value`.")


def _others(name: str) -> str:
    """Name the shipped ones that were probably meant, and say where all are."""
    folder = Path(str(resources.files("magnet_train") / "configs"))
    names = [f"configs/{path.relative_to(folder).as_posix()}" for path in sorted(folder.rglob("*.yaml"))]
    endings = {shipped.rpartition("/")[2]: shipped for shipped in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    close = close or difflib.get_close_matches(Path(name).name, endings, n=1, cutoff=0.8)
    if not close:
        return f"the shipped ones lie in {folder}"
    return f"the nearest of the shipped ones, which lie in {folder}, is {endings.get(close[0], close[0])}"
