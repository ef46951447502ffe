"""Find the YAML files that `-c` names, shipped ones included, and reject files without settings."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from magnet_train.errors import UserError, cannot_read

CONFIG_OPTIONS = ("-c", "--config")


def packaged_config(name: str) -> str:
    """Return the path of `configs/...yaml`: in the working directory, else the copy in the package."""
    if Path(name).exists() or not name.startswith("configs/"):
        return name
    shipped = resources.files("magnet_train") / name
    return str(shipped) if shipped.is_file() else name


def with_found_configs(arguments: Sequence[str]) -> list[str]:
    """Replace names of configurations by paths; raises `UserError` for a file that cannot be read as a mapping."""
    found = list(arguments)
    for index, word in enumerate(found):
        if index and found[index - 1] in CONFIG_OPTIONS:
            found[index] = _checked(word)
        elif word.startswith("--config="):
            found[index] = f"--config={_checked(word.removeprefix('--config='))}"
    return found


def _checked(name: str) -> str:
    """Return the path of a configuration that the parser can load; its own errors would not name the file."""
    name = packaged_config(name)
    path = Path(name)
    if not path.is_file():
        raise UserError(f"there is no file {name}; {_suggestion(name)}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise cannot_read(name, error, remedy="check its permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not valid YAML ({' '.join(str(error).split())}); correct it.") from error
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds only the value '{str(content)[:60]}'"
        raise UserError(f"{name} {found}; write settings as `key: value`.")
    return name


def _suggestion(name: str) -> str:
    """Return the shipped configuration nearest to `name`, if there is one, and the folder of all of them."""
    folder = Path(str(resources.files("magnet_train") / "configs"))
    names = [f"configs/{path.relative_to(folder).as_posix()}" for path in sorted(folder.rglob("*.yaml"))]
    endings = {shipped.rpartition("/")[2]: shipped for shipped in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    close = close or difflib.get_close_matches(Path(name).name, endings, n=1, cutoff=0.8)
    if not close:
        return f"the shipped configurations are in {folder}"
    return f"the nearest shipped configuration is {endings.get(close[0], close[0])}, in {folder}"
