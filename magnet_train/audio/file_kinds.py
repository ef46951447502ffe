"""What lies at a path, before it is opened: a pipe would wait for ever, and a device may never end."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (fifo)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def why_not_a_file(path: str | Path) -> str | None:
    """Say why there is no file with content to open.

    Returns:
        A phrase that follows the path, as in "is a pipe (fifo), not a file"; None if nothing is wrong.
    """
    try:
        found = os.stat(path)
    except ValueError:
        return "is not a possible path: it holds a NUL character"
    except OSError as error:
        return _why_not_found(path, error)
    if stat.S_ISREG(found.st_mode):
        return None if found.st_size else "is empty (0 bytes)"
    kind = next((kind for is_kind, kind in _KINDS if is_kind(found.st_mode)), "something else")
    return f"is {kind}, not a file"


def _why_not_found(path: str | Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a link that leads in a circle"
    with contextlib.suppress(OSError):
        return f"is a link to {os.readlink(path)}, which is not there"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "does not exist"
    return f"cannot be read ({error.strerror})"
