"""What users rely on, as three lists: the command line, what Python code and YAML can name, and the keys of files.

The lists lie beside this file and are compared with the code by test_public.py. Write them again with

    python tests/public/record_public.py
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jsonargparse
import numpy as np
import torch
import yaml
from make_public_files import ROOT, make_all

import magnet_train
from magnet_train.cli.main import COMMANDS, main

HERE = Path(__file__).parent
# Packages and modules all of whose names can stand in a user's YAML or program.
MODULES = (
    "datamodules",
    "magnet_train",
    "magnet_train.codecs",
    "magnet_train.decoding",
    "magnet_train.evaluation",
    "magnet_train.models",
    "magnet_train.text",
    "magnet_train.training.callbacks",
    "magnet_train.training.finetune",
    "magnet_train.training.optim",
)
LIGHTNING = re.compile(
    r"(trainer|model|data|tuning)\.|help$|print_config|.*\.help$"
)  # options of its own or of classes


class _Captured(BaseException):
    """Carries a command's parser out of the command."""


def parser_of(*words: str) -> argparse.ArgumentParser:
    """Return the parser that `magnet-train WORDS` reads its options with."""

    def capture(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        if all(action.dest != "command" for action in self._actions):  # not the parser that finds the command
            raise _Captured(self)
        return parse(self, *_, **__)

    parse = argparse.ArgumentParser.parse_args
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", capture),
        mock.patch.object(jsonargparse.ArgumentParser, "parse_args", capture),
    ):
        try:
            main(words)
        except _Captured as captured:
            return captured.args[0]
    raise AssertionError(f"{words} reads no options")


def plain(value: Any) -> Any:
    """Return a default as JSON has it."""
    if value is inspect.Parameter.empty or value is MISSING:
        return "required"
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    if isinstance(value, (list, tuple, set)):
        return [plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def options_of(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return option or place -> what it is by default, and its choices if it has some."""
    found = {}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        names = [
            name.replace("-", "_").lstrip("_") for name in action.option_strings if name.startswith("--")
        ]
        default = "required" if action.required else plain(action.default)
        entry = (
            default
            if not action.choices
            else {"default": default, "choices": sorted(map(str, action.choices))}
        )
        found.update(dict.fromkeys(names or [action.dest], entry))
    return found


@mock.patch("os.cpu_count", return_value=8)  # some defaults follow it, when their module is imported
def command_line(_: mock.Mock) -> dict[str, dict[str, Any]]:
    """Return command -> options; of LightningCLI those that we add."""
    importlib.reload(importlib.import_module("magnet_train.cli.commands.verify"))
    listing = {}
    for command in sorted(COMMANDS):
        if command in ("fit", "validate", "test", "predict"):
            subparsers = parser_of(command, "-c", str(ROOT / "configs" / "base.yaml"))._subparsers
            (choices,) = (action.choices for action in subparsers._group_actions)
            options = options_of(choices[command])
            listing[command] = {name: kind for name, kind in options.items() if not LIGHTNING.match(name)}
        else:
            listing[command] = options_of(parser_of(command))
    return listing


def parameters_of(called: Callable[..., Any]) -> dict[str, Any]:
    """Return parameter -> default."""
    factories = {}
    if is_dataclass(called):
        factories = {f.name: f.default_factory() for f in fields(called) if f.default_factory is not MISSING}
    return {
        name: plain(factories.get(name, parameter.default))
        for name, parameter in inspect.signature(called).parameters.items()
        if name not in ("self", "cls", "args", "kwargs") and not name.startswith("_")
    }


def class_paths(node: Any) -> Iterator[str]:
    """Yield every class path in a configuration."""
    if isinstance(node, list):
        for part in node:
            yield from class_paths(part)
    elif isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"]
        for part in node.values():
            yield from class_paths(part)


def public_names(module: str) -> list[str]:
    """Return `__all__` of a package, and the classes and functions that a plain module defines."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return list(found.__all__)
    names = [name for name in vars(found) if not name.startswith("_")]
    return [name for name in names if getattr(vars(found)[name], "__module__", None) == module]


def python_names() -> dict[str, Any]:
    """Return dotted name -> parameters of what YAML and programs can name, and the methods of `Magnet`."""
    names = {f"{module}.{name}" for module in MODULES for name in public_names(module)}
    for config in (ROOT / "configs").rglob("*.yaml"):
        paths = class_paths(yaml.safe_load(config.read_text()))
        names.update(path for path in paths if path.startswith(("magnet_train.", "datamodules.")))
    listing: dict[str, Any] = {}
    for name in sorted(names):
        package, _, last = name.rpartition(".")
        found = getattr(importlib.import_module(package), last)
        if inspect.isclass(found) or inspect.isfunction(found):  # not an alias of types
            listing[name] = parameters_of(found)
    for method, found in vars(magnet_train.Magnet).items():
        if not method.startswith("_"):
            called = getattr(found, "__func__", found)  # of a class method
            listing[f"magnet_train.Magnet.{method}"] = (
                parameters_of(called) if callable(called) else "property"
            )
    return listing


def config_files() -> list[str]:
    """Return the YAML files that `-c` finds by name."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


def file_keys(files: Path) -> dict[str, Any]:
    """Return the keys of each kind of file in a folder that `make_all` wrote.

    What Lightning puts into a checkpoint (loops, its own callbacks) is not listed.
    """
    manifest = json.loads((files / "shards" / "manifest.json").read_text())
    with tarfile.open(files / "shards" / manifest["shards"][0]["file"]) as tar:
        members = tar.getnames()
        sample = json.load(tar.extractfile(next(m for m in members if m.endswith(".json"))))
        tokens = np.load(io.BytesIO(tar.extractfile(next(m for m in members if m.endswith(".npy"))).read()))
    checkpoint = torch.load(files / "last.ckpt", weights_only=True)
    ours = {
        name: state
        for name, state in checkpoint["callbacks"].items()
        if not name.startswith("ModelCheckpoint")
    }
    pair = {
        path.name: torch.load(path, weights_only=True)
        for path in sorted((files / "audiocraft").glob("*.bin"))
    }
    return {
        "files": sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file()),
        "manifest.json": nested_keys(manifest),
        "index.npy": np.load(files / "shards" / "index.npy").dtype.descr,
        "sample.json": nested_keys(sample),
        "sample.npy": f"{tokens.dtype} [K, T]",
        "sample members": sorted({m.partition(".")[2] for m in members}),
        "checkpoint": sorted(checkpoint),
        "checkpoint.state_dict": sorted(checkpoint["state_dict"]),
        "checkpoint.callbacks": {name: nested_keys(state) for name, state in ours.items()},
        "checkpoint.magnet_train": nested_keys(checkpoint["magnet_train"]),
        "export/config.json": nested_keys(json.loads((files / "export" / "config.json").read_text())),
        "audiocraft": {name: sorted(package) for name, package in pair.items()},
        "audiocraft.best_state": sorted(pair["state_dict.bin"]["best_state"]),
        "audiocraft.xp.cfg": nested_keys(yaml.safe_load(pair["state_dict.bin"]["xp.cfg"])),
    }


def nested_keys(node: Any) -> Any:
    """Return the keys of a mapping, those of mappings in it as `outer.inner`, of a list as `outer[].inner`."""

    def walk(part: Any, path: str) -> Iterator[str]:
        if isinstance(part, Mapping) and part:
            for key, value in part.items():
                yield from walk(value, f"{path}.{key}" if path else str(key))
        elif isinstance(part, list) and part and isinstance(part[0], Mapping):
            yield from walk(part[0], f"{path}[]")
        else:
            yield path

    return sorted(walk(node, ""))


def record(files: Path) -> dict[str, Any]:
    """Return file name -> content of the three lists; `files` is a folder that `make_all` has just written."""
    return {
        "command_line.json": command_line(),
        "python_names.json": {"names": python_names(), "configs": config_files()},
        "file_keys.json": file_keys(files),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        make_all(Path(scratch) / "files")
        for name, content in record(Path(scratch) / "files").items():
            (HERE / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
