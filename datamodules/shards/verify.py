"""Check a folder of shards byte for byte against its manifest, or index tars from elsewhere."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.shards.files import MalformedError, PlainFile
from datamodules.shards.index import (
    INDEX_DTYPE,
    INDEX_NAME,
    MAX_JSON_BYTES,
    IndexRows,
    read_index,
    write_index,
)
from datamodules.shards.manifest import (
    JOB_NAME,
    MANIFEST_NAME,
    WORK_NAME,
    Manifest,
    ShardEntry,
    check_shard_name,
    read_codec,
    read_manifest,
    write_manifest,
)
from datamodules.shards.scan import Issue, ShardScan, parse_metadata, scan_shard, unreadable_issue
from datamodules.shards.tar import member_name, split_name, walk_tar
from magnet_train.errors import UserError, cannot_read
from magnet_train.tokens import CodecInfo

Progress = Callable[[int, int], None]  # (shards done, shards in all)


def verify_shards(folder: Path, *, workers: int = 1, progress: Progress | None = None) -> list[Issue]:
    """Find everything that is wrong with a folder of shards, read by `workers` processes in parallel.

    Returns:
        Issues in the order of the shards; an empty list means that every byte is as it was written.

    Raises:
        UserError: There is no manifest to check against.
    """
    manifest = read_manifest(folder)
    listed = {shard.file for shard in manifest.shards}
    issues = [
        Issue(path.name, None, "lies in the folder but the manifest does not list it")
        for path in _tars(folder)
        if path.name not in listed and not (folder / WORK_NAME).exists()  # else the next manifest lists it
    ]
    paths = [folder / shard.file for shard in manifest.shards]
    _, rows, found = _scan(paths, manifest.codec, manifest.shards, workers, progress)
    return issues + found or _check_index(folder, manifest, rows)


def adopt_shards(
    folder: Path, codec: CodecInfo | None = None, *, workers: int = 1, progress: Progress | None = None
) -> Manifest:
    """Write manifest and index for tars that have none, after reading every byte of them.

    A folder that has a manifest is checked against it and only gets a new index, so damage is not accepted.

    Args:
        folder: Tars of KEY.npy and KEY.json.
        codec: Codec that made the tokens; None takes it from the manifest or the first sample's JSON (`codec`).
        workers: Processes that read shards in parallel.
        progress: Called after each shard.

    Raises:
        UserError: No tars, an unknown codec, or damage in a shard; names shard and key.
    """
    # a folder with a job file but no manifest is unfinished: `read_manifest` raises that error
    is_ours = (folder / MANIFEST_NAME).exists() or (folder / JOB_NAME).exists()
    known = read_manifest(folder) if is_ours else None
    paths = _tars(folder)
    if not paths:
        raise UserError(f"{folder} holds no .tar to index; name the folder that holds the shards.")
    if known is not None:
        if codec is not None:
            remedy = "leave --codec out, or name the codec that made the tokens"
            known.codec.require_same_tokens(codec, str(folder), "--codec", remedy)
        codec = known.codec
        paths = [folder / shard.file for shard in known.shards]
    else:
        _require_listable(folder, paths)
        codec = _codec_of_first_sample(paths[0]) if codec is None else codec
    entries, rows, issues = _scan(paths, codec, () if known is None else known.shards, workers, progress)
    if issues:
        raise UserError(
            f"{folder}: {issues[0]} (problem 1 of {len(issues)}); copy or make the shards again, then index them."
        )
    if not len(rows):
        raise UserError(f"the tars in {folder} hold no samples; name another folder.")
    manifest = Manifest(codec, tuple(entries), write_index(folder, rows))
    write_manifest(folder, manifest)
    return manifest


def _require_listable(folder: Path, paths: list[Path]) -> None:
    try:
        for path in paths:
            check_shard_name(path.name)
    except MalformedError as error:
        raise UserError(f"{folder} holds a tar that a manifest cannot list ({error}); rename it.") from error


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def _scan(
    paths: list[Path],
    codec: CodecInfo,
    listed: Sequence[ShardEntry],
    workers: int,
    progress: Progress | None,
) -> tuple[list[ShardEntry], IndexRows, list[Issue]]:
    """Scan shards, compare each with its entry in `listed` if that has any, and find keys that are in two."""
    present = {path: number for number, path in enumerate(paths) if path.exists()}
    missing = [path.name for path in paths if path not in present]
    issues = [Issue(name, None, "is missing though the manifest lists it") for name in missing]
    entries, rows = [], [np.empty(0, dtype=INDEX_DTYPE)]
    with _mapping(min(workers, len(present))) as map_:
        scans = map_(functools.partial(scan_shard, codec=codec), present, present.values())
        for number, scan in zip(present.values(), scans, strict=True):
            entries.append(scan.entry)
            rows.append(scan.rows)
            issues += scan.issues or (_compare(listed[number], scan.entry) if listed else [])
            if progress is not None:
                progress(len(entries), len(present))
    joined = np.concatenate(rows)
    return entries, joined, issues + _find_duplicates(paths, joined)


@contextlib.contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterable[ShardScan]]]:
    """Yield `map`, or that of a pool of processes."""
    if workers <= 1:
        yield map
        return
    try:  # spawned, not forked: the caller may have threads
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool.map
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads shards was killed, perhaps for lack of memory; try --workers 1."
        ) from error


def _compare(listed: ShardEntry, found: ShardEntry) -> list[Issue]:
    """Return the first difference between the manifest and a shard that is sound in itself."""
    for name in ("bytes", "samples", "frames", "sha256"):
        expected, actual = getattr(listed, name), getattr(found, name)
        if expected != actual:
            return [Issue(listed.file, None, f"{name} is {actual} and the manifest has {expected}")]
    return []


def _find_duplicates(paths: Sequence[Path], rows: IndexRows) -> list[Issue]:
    """Find keys that occur in two shards: equal hashes are candidates, the keys themselves decide."""
    order = np.argsort(rows["key_hash"], kind="stable")
    hashes = rows["key_hash"][order]
    issues = []
    for place in np.flatnonzero(hashes[1:] == hashes[:-1]):
        first, second = rows[order[place]], rows[order[place + 1]]
        first_path, second_path = paths[int(first["shard"])], paths[int(second["shard"])]
        try:
            key = _read_key(second_path, second)
            if key == _read_key(first_path, first):
                issues.append(Issue(second_path.name, key, f"is in {first_path.name} too (duplicate key)"))
        except (MalformedError, OSError) as error:
            issues.append(Issue(second_path.name, None, f"changed while it was read ({error})"))
    return issues


def _read_key(path: Path, row: np.void) -> str:
    start, end = int(row["npy_header"]), int(row["npy_offset"])
    with PlainFile(path) as file:
        return split_name(member_name(file.read(start, end - start)))[0]


def _check_index(folder: Path, manifest: Manifest, rows: IndexRows) -> list[Issue]:
    what = "does not describe these shards"
    try:
        if np.array_equal(read_index(folder, manifest), rows):
            return []
    except FileNotFoundError:
        what = "is missing"
    except OSError as error:
        return [unreadable_issue(INDEX_NAME, error)]
    except MalformedError as error:
        what = str(error)
    return [Issue(INDEX_NAME, None, what, remedy="make it again with --write_index")]


def _codec_of_first_sample(path: Path) -> CodecInfo:
    """Read `codec` from the first JSON of a tar."""
    record: dict[str, Any] = {}
    try:
        with PlainFile(path) as file:
            for member in walk_tar(file):
                if split_name(member.name)[1] == "json":
                    record = parse_metadata(file.read(member.offset, min(member.size, MAX_JSON_BYTES + 1)))
                    break
    except OSError as error:
        raise cannot_read(path, error) from error
    except MalformedError as error:
        raise UserError(f"{path} is damaged: {error}; copy it again.") from error
    if not isinstance(record.get("codec"), dict):
        raise UserError(f"{path} does not say which codec made its tokens; name it with --codec.")
    return read_codec(record["codec"], where=f"codec in the first sample of {path}")
