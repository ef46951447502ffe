"""Imports go in one direction, and the command line starts without heavy ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for package in ("magnet_train", "datamodules") for p in (ROOT / package).rglob("*.py"))

# What each part may import of ours; the first entry that a file's module name starts with decides.
ALLOWED = {
    "magnet_train.errors": (),
    "magnet_train.tokens": ("magnet_train.errors",),
    "magnet_train.whole_files": ("magnet_train.errors",),
    "magnet_train.plain_text": (),
    "magnet_train.weight_checks": ("magnet_train.errors",),
    "magnet_train.file_kinds": (),
    "magnet_train.containers": ("magnet_train.containers",),
    "magnet_train.audio_levels": (),
    "magnet_train.audio_reading": (
        "magnet_train.errors",
        "magnet_train.containers",
        "magnet_train.file_kinds",
    ),
    "magnet_train.hub": ("magnet_train.errors",),
    "magnet_train.masking": ("magnet_train.errors", "magnet_train.tokens"),
    "magnet_train.stages": (),
    "magnet_train.losses": ("magnet_train.errors", "magnet_train.tokens", "magnet_train.masking"),
    "magnet_train.decoding": (
        "magnet_train.errors",
        "magnet_train.tokens",
        "magnet_train.masking",
        "magnet_train.decoding",
    ),
    "magnet_train.models": (
        "magnet_train.errors",
        "magnet_train.tokens",
        "magnet_train.masking",
        "magnet_train.models",
    ),
    "magnet_train.codecs": (
        "magnet_train.errors",
        "magnet_train.tokens",
        "magnet_train.hub",
        "magnet_train.plain_text",
        "magnet_train.weight_checks",
        "magnet_train.codecs",
    ),
    "magnet_train.text": (
        "magnet_train.errors",
        "magnet_train.tokens",
        "magnet_train.hub",
        "magnet_train.weight_checks",
        "magnet_train.text",
    ),
    "magnet_train.evaluation": ("magnet_train.errors", "magnet_train.hub", "magnet_train.evaluation"),
    "magnet_train.rescoring": (
        "magnet_train.errors",
        "magnet_train.tokens",
        "magnet_train.hub",
        "magnet_train.text",
        "magnet_train.decoding",
    ),
    "magnet_train.editing": ("magnet_train.errors",),
    "magnet_train.repetition": (),
    "magnet_train.long_form": ("magnet_train.decoding", "magnet_train.repetition"),
    "magnet_train.looping": (
        "magnet_train.codecs",
        "magnet_train.long_audio",
        "magnet_train.long_form",
        "magnet_train.repetition",
    ),
    "magnet_train.metrics": ("magnet_train.losses",),
    "magnet_train.sharding": ("magnet_train.models",),
    "magnet_train.scale": ("magnet_train.errors", "magnet_train.models"),
    "magnet_train.optim": ("magnet_train.errors", "magnet_train.optim", "magnet_train.sharding"),
    "magnet_train.demo": (
        "magnet_train.errors",
        "magnet_train.audio",
        "magnet_train.callbacks.spectrogram",
        "magnet_train.checkpoints.licence",
        "magnet_train.decoding",
        "magnet_train.magnet",
        "magnet_train.models",
        "magnet_train.text",
        "magnet_train.demo",
    ),
    "magnet_train.survival": (
        "magnet_train.errors",
        "magnet_train.whole_files",
        "magnet_train.checkpoints",
        "magnet_train.survival",
    ),
    "datamodules": (
        "magnet_train.errors",
        "magnet_train.tokens",
        "magnet_train.plain_text",
        "magnet_train.whole_files",
        "datamodules",
    ),
}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_direction(file):
    name = module_name(file)
    ours = {i for i in imports_of(file) if i.split(".")[0] in ("magnet_train", "datamodules")}
    for part, allowed in ALLOWED.items():
        if name == part or name.startswith(part + "."):
            wrong = {i for i in ours if not i.startswith(tuple(allowed) or ("-",))}
            assert not wrong, f"{name} must not import {wrong}"
    if name.startswith("magnet_train") and not name.startswith("magnet_train.cli"):
        assert not any(i.startswith("datamodules") for i in ours)


def test_torchaudio_stays_in_one_file():
    users = {module_name(f) for f in FILES if any(i.split(".")[0] == "torchaudio" for i in imports_of(f))}
    assert users == {"magnet_train.audio"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from magnet_train.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'transformers', 'numpy', 'soundfile', 'rich', 'gradio'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_no_init_under_tests():
    assert not list((ROOT / "tests").rglob("__init__.py"))
