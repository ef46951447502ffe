"""Torch files as plain data: no code of a file is run, and OmegaConf's objects become dicts and lists.

A training checkpoint of audiocraft holds its configuration as OmegaConf objects, which a `weights_only` load refuses.
A stand-in for their classes keeps only the pickled state.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from magnet_train.errors import UserError, cannot_read

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how torch's files begin, new and old


def load_plain(path: Path, mapped: bool = False) -> Any:
    """Read a torch file without running code.

    `mapped` maps the file instead of reading it: for short use, since the file must not change meanwhile.

    Raises:
        UserError: The file is missing, damaged, or holds more than plain data.
    """
    _require_torch_file(path)
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _require_uncompressed(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_archive)
    except (pickle.UnpicklingError, LookupError) as error:  # torch's message advises how to run such a file
        raise UserError(
            f"{path} is damaged or holds objects that could run code, so it was not loaded; save it again as "
            "plain tensors."
        ) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except (RuntimeError, EOFError, ValueError) as error:  # torch's message is about its reader
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is cut short or damaged; copy or save it again.")


def _require_torch_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    if not start.startswith((_ZIP, _PICKLE)):
        raise UserError(
            f"{path} is not a checkpoint or a weights file of torch; check the path, or copy it again."
        )


def _require_uncompressed(path: Path) -> None:
    """Refuse a compressed archive, which could be far larger than its file; torch writes its files uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise _damaged(path) from error
    if unpacked > path.stat().st_size:
        raise UserError(f"{path} is compressed, which torch's own files are not; save it again.")


class _Kept:
    """The pickled state of an object of OmegaConf."""

    state: dict[str, Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _empty_dict(*_: Any) -> dict[Any, Any]:
    """Stand for `collections.defaultdict`, which the weights-only reader does not fill."""
    return {}


def _joined(*parts: str) -> str:
    """Stand for a path, which is pickled as its parts."""
    return "/".join(parts).replace("//", "/", 1)


def _type(*_: Any) -> type[_Kept]:
    """Stand for `Tuple[int, ...]` and the like, which are pickled as an index into their generic type."""
    return _Kept


_BUILTINS = ("int", "str", "bool", "float", "bytes", "dict", "list", "tuple", "Ellipsis")
_NODES = ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Interpolation", "Path", "String")
_OBJECTS = (
    *(
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.tupleconfig.TupleConfig",
    ),
    *(f"omegaconf.nodes.{name}Node" for name in _NODES),
    *(f"omegaconf.base.{name}" for name in ("UnionNode", "ContainerMetadata", "Metadata", "SCMode")),
    # Types that OmegaConf names beside its values; nothing is built from them.
    *(f"builtins.{name}" for name in _BUILTINS),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Tuple", "Union", "Optional")),
)
_PATHS = ("Posix", "PurePosix", "Windows", "PureWindows", "_local.Posix", "_local.PurePosix")
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((_Kept, name) for name in _OBJECTS),
    (_type, "_operator.getitem"),
    (_empty_dict, "collections.defaultdict"),
    *((_joined, f"pathlib.{kind}Path") for kind in _PATHS),
]


def to_plain(node: Any) -> Any:
    """Return the dicts, lists and plain values of OmegaConf objects that `load_plain` read; `${...}` stays text."""
    if not isinstance(node, _Kept):
        return node
    content = node.state.get("_content", node.state.get("_val"))
    if isinstance(content, dict):
        return {str(to_plain(key)): to_plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [to_plain(value) for value in content]
    return to_plain(content)
