"""OmegaConf's pickled objects as inert data, without OmegaConf and without running code.

A training checkpoint of the reference holds its configuration as OmegaConf objects, which a `weights_only` load
refuses. Stand-ins for their classes only keep the pickled state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Kept:
    """An object's state, as it was pickled."""

    state: dict[str, Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Dict(_Kept):
    pass


class _List(_Kept):
    pass


class _Value(_Kept):
    pass


class _Else(_Kept):
    pass


def _empty_dict(*_: Any) -> dict[Any, Any]:
    """Stands for `collections.defaultdict`, which the weights-only reader does not fill."""
    return {}


def _joined(*parts: str) -> str:
    """Stands for a path, which is pickled as its parts."""
    return "/".join(parts).replace("//", "/", 1)


def _type(*_: Any) -> type[_Else]:
    """Stands for `Tuple[int, ...]` and the like, which are pickled as an index into their generic type."""
    return _Else


_VALUES = ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Interpolation", "Path", "String")
# Types that OmegaConf names beside its values; nothing is built from them.
_TYPES = (
    *(
        f"builtins.{name}"
        for name in ("int", "str", "bool", "float", "bytes", "dict", "list", "tuple", "Ellipsis")
    ),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Tuple", "Union", "Optional")),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.base.SCMode"),
)
_PATHS = ("Posix", "PurePosix", "Windows", "PureWindows", "_local.Posix", "_local.PurePosix")
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Dict, "omegaconf.dictconfig.DictConfig"),
    (_List, "omegaconf.listconfig.ListConfig"),
    (_List, "omegaconf.tupleconfig.TupleConfig"),
    *((_Value, f"omegaconf.nodes.{name}Node") for name in _VALUES),
    (_Value, "omegaconf.base.UnionNode"),
    *((_Else, name) for name in _TYPES),
    (_type, "_operator.getitem"),
    (_empty_dict, "collections.defaultdict"),
    *((_joined, f"pathlib.{kind}Path") for kind in _PATHS),
]


def to_plain(node: Any) -> Any:
    """Return dicts, lists and plain values for what a load with `STAND_INS` gave; `${...}` stays text."""
    if isinstance(node, _Kept):
        content = node.state.get("_content" if not isinstance(node, _Value) else "_val")
        if isinstance(node, _Dict) and isinstance(content, dict):
            return {str(to_plain(key)): to_plain(value) for key, value in content.items()}
        if isinstance(node, _List) and isinstance(content, list | tuple):
            return [to_plain(value) for value in content]
        return to_plain(content) if isinstance(node, _Value) else content
    return node
