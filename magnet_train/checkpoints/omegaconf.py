"""Read what OmegaConf pickles as inert data, without OmegaConf and without running code.

A training checkpoint of the reference holds its configuration as OmegaConf objects, which a `weights_only` load
refuses. Each of their classes is replaced by one that only keeps what it is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any


class _Kept:
    """Whatever object stood there; its state, untouched."""

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


_VALUES = ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Interpolation", "Path", "String", "Union")
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Dict, "omegaconf.dictconfig.DictConfig"),
    (_List, "omegaconf.listconfig.ListConfig"),
    *((_Value, f"omegaconf.nodes.{name}Node") for name in _VALUES),
    (_Else, "omegaconf.base.ContainerMetadata"),
    (_Else, "omegaconf.base.Metadata"),
    (_Else, "omegaconf.base.SCMode"),
    (_Else, "typing.Any"),
    # Types that OmegaConf names beside its values; to call one does nothing but make an empty or equal value.
    *((kind, f"builtins.{kind.__name__}") for kind in (int, str, bool, float, dict, list)),
    (defaultdict, "collections.defaultdict"),
]


def to_plain(node: Any) -> Any:
    """Turn what a load with `STAND_INS` gave into dicts, lists and numbers; `${...}` stays text."""
    if isinstance(node, _Kept):
        content = node.state.get("_content" if not isinstance(node, _Value) else "_val")
        if isinstance(node, _Dict) and isinstance(content, dict):
            return {str(to_plain(key)): to_plain(value) for key, value in content.items()}
        if isinstance(node, _List) and isinstance(content, list):
            return [to_plain(value) for value in content]
        return to_plain(content) if isinstance(node, _Value) else content
    return node
