"""Link into a folder what `pip install magnet-train` would install, without extras and without this package.

    python .ci/core_environment.py FOLDER

The packages come from the environment that runs this, which has everything. A clean environment is checked with
this folder on its path in seconds; a download of PyTorch for each check would take minutes.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def required(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Return name -> distribution of everything that the requirements bring along.

    Raises:
        PackageNotFoundError: This environment lacks one of them.
    """
    found: dict[str, Distribution] = {}
    visited = set()
    waiting = [(Requirement(text), frozenset({""})) for text in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        own_extras = frozenset({"", *requirement.extras})
        if (name, own_extras) in visited:
            continue
        visited.add((name, own_extras))
        found[name] = distribution(name)
        waiting += [(Requirement(text), own_extras) for text in found[name].requires or ()]
    return found


def link_core(folder: Path) -> None:
    """Link the packages that `[project] dependencies` brings into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    core = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    for package in required(core).values():
        for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(package.locate_file(name))


if __name__ == "__main__":
    link_core(Path(sys.argv[1]))
