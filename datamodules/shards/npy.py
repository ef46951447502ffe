"""Strict decoder of `.npy` tokens: integers [K, T] and nothing else, never a pickle.

Shapes: tokens int16 or uint16 [K, T] with K codebooks and T frames.
"""

from __future__ import annotations

import functools
import re
import struct
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from datamodules.shards.files import MalformedError

TokenArray: TypeAlias = npt.NDArray[np.integer[Any]]

MAX_NPY_HEADER_BYTES = 10_000  # numpy's own limit

_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[^']*)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\),? *\} *\n?"
)
_DTYPES: dict[bytes, np.dtype[np.integer[Any]]] = {b"<i2": np.dtype("<i2"), b"<u2": np.dtype("<u2")}
_QUOTED = 60  # bytes of a header in an error


def split_header(payload: bytes) -> tuple[bytes, int]:
    """Return the header literal at the beginning of an npy file, and the byte at which the data begin.

    Raises:
        MalformedError: Not an npy file, an unknown version, or more than 10,000 bytes of header.
    """
    if payload[:6] != _MAGIC or len(payload) < 12:
        raise MalformedError("not a .npy file")
    if payload[6] == 1:
        start, length = 10, struct.unpack_from("<H", payload, 8)[0]
    elif payload[6] in (2, 3):
        start, length = 12, struct.unpack_from("<I", payload, 8)[0]
    else:
        raise MalformedError(f".npy version {payload[6]} is unknown")
    if length > MAX_NPY_HEADER_BYTES:
        raise MalformedError(f"its .npy header has {length} bytes, more than {MAX_NPY_HEADER_BYTES}")
    if len(payload) < start + length:
        raise MalformedError("its .npy header is cut short")
    return payload[start : start + length], start + length


def tokens_from_npy(payload: bytes) -> TokenArray:
    """Decode the bytes of one `.npy` member without copying.

    Returns:
        Read-only tokens [K, T], int16 or uint16; `scan.check_tokens` checks their range.

    Raises:
        MalformedError: Not an npy file, another dtype, shape or order, or too few or too many bytes.
    """
    header, start = split_header(payload)
    dtype, n_q, frames = _parse_header(header)
    expected = start + dtype.itemsize * n_q * frames
    if len(payload) != expected:
        raise MalformedError(f".npy of shape [{n_q}, {frames}] needs {expected} bytes and has {len(payload)}")
    return np.ndarray((n_q, frames), dtype, payload, start)


@functools.lru_cache(maxsize=4096)  # clips of one length have the same header, byte for byte
def _parse_header(header: bytes) -> tuple[np.dtype[np.integer[Any]], int, int]:
    """Return dtype, K and T."""
    match = _HEADER.fullmatch(header)
    if match is None:
        raise MalformedError(f"unreadable .npy header {header[:_QUOTED]!r}")
    dtype = _DTYPES.get(match["dtype"])
    if dtype is None:
        name = match["dtype"][:_QUOTED].decode("ascii", "replace")
        raise MalformedError(f"dtype {name!r} is neither int16 nor uint16")
    shape = [int(size) for size in match["shape"].replace(b" ", b"").split(b",") if size]
    if len(shape) != 2:
        raise MalformedError(f"shape {str(shape)[:_QUOTED]} is not [K, T]")
    if match["fortran"] == b"True" and min(shape) > 1:
        raise MalformedError("tokens are in Fortran order, not C order")
    return dtype, shape[0], shape[1]
