"""One schema for the JSON of all samples of a folder: the same fields, each of one type.

Libraries (`datasets`, Arrow, pandas) infer the types of columns from the first samples, where missing and null fields
have no type.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from datamodules.shards.writer import metadata_bytes
from datamodules.tokenize.caption_rules import as_words

Schema: TypeAlias = dict[str, str]  # field -> type
_TEXT, _MIXED = "text", "mixed"
_SCALARS: dict[type, str] = {type(None): "null", bool: "bool", int: "int", float: "float", str: _TEXT}
_FLOATS = {"int": "float", "[int]": "[float]"}
_CONVERT: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "[float]": lambda value: [float(part) for part in _as_list(value)],
    "[text]": lambda value: [str(part) for part in _as_list(value)],
}
_ABSENT = {"start": 0.0}  # else ""
_LONGEST_TYPE = 4096  # characters; an object with a longer type becomes text
# With more fields the JSON stays as it is: every field in every sample would take too much space.
_MOST_FIELDS = 256


def schema_of(metadata: Mapping[str, Any]) -> Schema:
    """Return the type of each field: null, bool, int, float, text, [type], {name: type} or mixed."""
    return {name: _type_of(value) for name, value in metadata.items()}


def common_schema(samples: Iterable[Schema], settled: Schema | None = None) -> Schema | None:
    """Join the schemas of samples; None if they have too many different fields.

    A field keeps its type if all samples have it with that type (integers and floats become floats). Others are text.

    Args:
        samples: The schema of each sample.
        settled: Schema of samples that stay in the folder; its fields and types are kept.
    """
    samples = list(samples)
    types: Schema = {}
    found: Counter[str] = Counter()
    for sample in samples:
        found.update(sample.keys())
        for name, kind in sample.items():
            types[name] = _join(types.setdefault(name, kind), kind)
    number = len(samples) if settled is None else -1  # samples that stay lack every new field
    common = {
        name: kind if kind != _MIXED and (found[name] == number or name in _ABSENT) else _TEXT
        for name, kind in types.items()
    }
    common = {**common, **(settled or {})}
    return common if len(common) <= _MOST_FIELDS else None


def fits(metadata: Mapping[str, Any], schema: Schema) -> bool:
    """Return whether a schema has every field of a sample, with a type that its value can be converted to."""
    return all(
        name in schema and (value is None or _convert(value, schema[name]) is not None)
        for name, value in metadata.items()
    )


def conform(metadata: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """Return metadata with the fields and types of a schema; unchanged if the result would be too large.

    A missing text is "", and a value that cannot be converted is None.
    """
    conformed = {
        name: _convert(metadata.get(name, _ABSENT.get(name, "" if kind == _TEXT else None)), kind)
        for name, kind in schema.items()
    }
    try:
        metadata_bytes(conformed)
    except ValueError:
        return metadata
    return conformed


def _type_of(value: Any) -> str:
    if isinstance(value, Mapping):
        fields = {json.dumps(name): _type_of(part) for name, part in sorted(value.items())}
        kind = f"{{{', '.join(f'{name}: {part}' for name, part in fields.items())}}}"
        return _MIXED if _MIXED in fields.values() or len(kind) > _LONGEST_TYPE else kind
    if isinstance(value, list):
        kind = ""
        for place, part in enumerate(map(_type_of, value)):
            kind = _join(kind, part) if place else part
        return _MIXED if kind == _MIXED else f"[{kind}]"
    return _SCALARS.get(type(value), _MIXED)


def _join(first: str, second: str) -> str:
    if first == second:
        return first
    float_type = _FLOATS.get(first, first)
    return float_type if float_type == _FLOATS.get(second, second) else _MIXED


def _convert(value: Any, kind: str) -> Any:
    if kind == _TEXT:
        return value if isinstance(value, str) else _as_text(value)
    if _type_of(value) == kind:
        return value
    try:
        return _CONVERT[kind](value)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _as_text(value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, (list, Mapping)) for part in parts):
        return json.dumps(value, ensure_ascii=False)
    return as_words(value)
