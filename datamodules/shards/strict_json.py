"""JSON from elsewhere, read strictly: what passes here can be written, printed and walked through again."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from datamodules.shards.issues import MalformedError

_DEEPEST = (
    32  # lists and objects within each other; recursion over what was read stays far from Python's limit
)


def parse_object(payload: bytes) -> dict[str, Any]:
    """Decode one JSON object.

    Raises:
        MalformedError: It is not UTF-8 or not JSON, not an object, nested deeper than 32, has a key twice, a
            number that is not finite, or half of a surrogate pair.
    """
    try:
        record = _DECODER.decode(
            payload.decode()
        )  # as text: guessing the encoding takes longer than the rest
        if b"\\ud" in payload or b"\\uD" in payload:
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise MalformedError("unreadable (half of a surrogate pair)") from error
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"unreadable ({error})") from error
    if not isinstance(record, dict):
        raise MalformedError(f"a {type(record).__name__}, not an object")
    if payload.count(b"[") + payload.count(b"{") > _DEEPEST and _is_deeper(record, _DEEPEST):
        raise MalformedError(f"unreadable (nested deeper than {_DEEPEST})")
    return record


def _is_deeper(record: dict[str, Any], limit: int) -> bool:
    level: list[Any] = [record]
    for _ in range(limit):
        children = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for some in children for child in some if isinstance(child, (dict, list))]
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"key {names.most_common(1)[0][0][:60]!r} is there twice")
    return record


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


# one for all: `json.loads` makes a decoder for each call that has options
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse)
