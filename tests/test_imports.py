"""Imports go in one direction, and the command line starts without heavy ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for package in ("magnet_train", "datamodules") for p in (ROOT / package).rglob("*.py"))

# From the bottom to the top. A module belongs to the longest entry that its name begins with, and imports that entry
# and those above it in this list.
LAYERS = (
    "magnet_train.errors",
    "magnet_train.storage",
    "magnet_train.tokens",
    "magnet_train.masking",
    "magnet_train.decoding",
    "magnet_train.models",
    "magnet_train.audio",
    "magnet_train.codecs",
    "magnet_train.text",
    "magnet_train.evaluation",
    "magnet_train.checkpoints",
    "magnet_train.pipeline",
    "magnet_train.apps.demo",
    "magnet_train.training.stop_request",
    "magnet_train.training.objective",
    "magnet_train.training.metrics",
    "magnet_train.training.parallel",
    "magnet_train.training.optim",
    "magnet_train.training.lightning_internals",
    "magnet_train.training.module",
    "magnet_train.training",
    "datamodules.shards",
    "datamodules.sampling",
    "datamodules.tokenize",
    "datamodules",
    "magnet_train.cli",
    "magnet_train.apps",
    "magnet_train.cli.commands",
    "magnet_train.__main__",
    "magnet_train",
)

# What must not import what, although the list would let it.
APART = (
    ("magnet_train.models", "magnet_train.decoding"),  # they meet in a function that gives logits
    ("magnet_train.training.objective", "magnet_train.models"),
    ("magnet_train.evaluation", "magnet_train.text"),
    ("magnet_train.evaluation", "magnet_train.codecs"),
    ("magnet_train.checkpoints", "magnet_train.audio"),
    ("datamodules", "magnet_train.decoding"),
    ("datamodules", "magnet_train.models"),
    ("datamodules", "magnet_train.audio"),
    ("datamodules", "magnet_train.codecs"),
    ("datamodules", "magnet_train.text"),
    ("datamodules", "magnet_train.checkpoints"),
    ("datamodules", "magnet_train.pipeline"),
    ("datamodules", "magnet_train.training"),
)


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def layer(name: str) -> str:
    return max((part for part in LAYERS if within(name, part)), key=len)


@cache
def all_imports(file: Path) -> set[str]:
    """Names of modules that a file imports anywhere; `from package import module` is the module."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in MODULES else node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def our_imports(name: str) -> set[str]:
    # `magnet_train` itself holds the version
    return {i for i in all_imports(MODULES[name]) if i in MODULES and i != "magnet_train"}


def test_every_module_has_a_layer() -> None:
    assert not [name for name in MODULES if not any(within(name, part) for part in LAYERS)]
    assert not [part for part in LAYERS if not any(layer(name) == part for name in MODULES)]


@pytest.mark.parametrize("name", MODULES)
def test_direction(name: str) -> None:
    own = LAYERS.index(layer(name))
    for imported in our_imports(name):
        assert LAYERS.index(layer(imported)) <= own, f"{name} must not import {imported}"
        for part, other in APART:
            assert not (within(name, part) and within(imported, other)), f"{name} must not import {imported}"


def test_no_cycles() -> None:
    """Modules import each other without cycles; a package that re-exports names of its modules does not count."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for imported in our_imports(name):
                visit(imported, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_torchaudio_stays_in_one_file() -> None:
    users = {
        name
        for name, file in MODULES.items()
        if any(i.split(".")[0] == "torchaudio" for i in all_imports(file))
    }
    assert users == {"magnet_train.audio.resampling"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from magnet_train.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'transformers', 'numpy', 'soundfile', 'rich', 'gradio'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_no_init_under_tests() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
