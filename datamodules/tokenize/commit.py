"""Replace the state of a folder of shards by the next one, so that a kill at any moment leaves one of the two.

The next state is written into `.tokenize/ready.partial`, which is renamed to `ready` when complete. From then on, every
run of the job continues to move it into the folder: first the new tars, which the present manifest does not list, then
the manifest, then its index (until then readers find it in `ready`) and the rest. Last, replaced tars are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.shards.files import read_whole
from datamodules.shards.index import INDEX_NAME, NEXT_INDEX_NAME
from datamodules.shards.manifest import (
    JOB_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    WORK_NAME,
    check_shard_name,
)
from datamodules.tokenize.report import REPORT_NAME
from datamodules.tokenize.sources import SOURCES_NAME
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors, publish, sync
from magnet_train.storage.plain_text import parse_object

_MOVES_NAME = "moves.json"  # the argument `moves` of `next_state`


@contextlib.contextmanager
def next_state(folder: Path, moves: Mapping[str, str | None]) -> Iterator[Path]:
    """Yield a folder for the files of the next state; if the block succeeds, `roll_forward` moves them into `folder`.

    Args:
        folder: Folder of shards.
        moves: Name of a shard -> the tar in `.tokenize` that becomes it, or None to remove the shard; may be filled
            within the block.
    """
    ready = (folder / NEXT_INDEX_NAME).parent
    partial = ready.with_name(f"{ready.name}.partial")
    with explain_disk_errors(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        with atomic_write(partial / _MOVES_NAME) as file:
            file.write(json.dumps(moves).encode())
        os.rename(partial, ready)
        sync(ready.parent)


def roll_forward(folder: Path) -> None:
    """Move a complete next state into the folder, if there is one; the caller holds the lock of the folder.

    Raises:
        UserError: The folder cannot be written to (the next call continues), or the next state is damaged.
    """
    work, ready = folder / WORK_NAME, (folder / NEXT_INDEX_NAME).parent
    if not ready.exists():
        return
    with explain_disk_errors(folder):
        # without this file everything was moved, and a process was killed while it removed `ready`
        moves = _read_moves(ready / _MOVES_NAME) if (ready / _MOVES_NAME).exists() else {}
        if (ready / MANIFEST_NAME).exists():
            for name, unit in moves.items():
                if unit is not None and (work / unit).exists():
                    publish(work / unit, folder / name)
            for tar in sorted(ready.glob("*.tar")):
                publish(tar, folder / tar.name)
            publish(ready / MANIFEST_NAME, folder / MANIFEST_NAME)
        for name in (INDEX_NAME, REPORT_NAME, SOURCES_NAME, JOB_NAME):
            if (ready / name).exists():
                publish(ready / name, folder / name)
        for name, unit in moves.items():
            if unit is None:
                (folder / name).unlink(missing_ok=True)
        shutil.rmtree(ready)


def _read_moves(path: Path) -> dict[str, Any]:
    """Read `moves` of `next_state`; refuse names that lead out of the folder, which may come from elsewhere."""
    try:
        moves = parse_object(read_whole(path, MAX_MANIFEST_BYTES))
        for name in (*moves, *(unit for unit in moves.values() if unit is not None)):
            check_shard_name(str(name))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); copy the folder again, or use --overwrite to tokenize all files again."
        ) from error
    return moves
