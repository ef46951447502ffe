"""Check a folder of shards byte for byte against its manifest, or index tars from elsewhere.

Both scan every shard with `scan_shard`, in parallel if `workers` is above 1.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

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
    """Find everything that is wrong with a folder of shards.

    Args:
        folder: Shards with manifest and index.
        workers: Processes that read shards side by side.
        progress: Called after each shard.

    Returns:
        Issues in the order of the shards; an empty list means that every byte is as it was written.

    Raises:
        UserError: There is no manifest to check against.
    """
    manifest = read_manifest(folder)
    numbers = {shard.file: number for number, shard in enumerate(manifest.shards)}
    issues = [
        Issue(path.name, None, "lies in the folder but the manifest does not list it")
        for path in _tars(folder)
        if path.name not in numbers
    ]
    present = [shard for shard in manifest.shards if (folder / shard.file).exists()]
    issues += [
        Issue(shard.file, None, "is missing though the manifest lists it")
        for shard in manifest.shards
        if shard not in set(present)
    ]
    paths = [folder / shard.file for shard in present]
    scans = list(_scan_all(paths, [numbers[path.name] for path in paths], manifest.codec, workers, progress))
    for shard, scan in zip(present, scans, strict=True):
        issues += scan.issues or _compare(shard, scan.entry)
    rows = _join([scan.rows for scan in scans])
    issues += _find_duplicates(folder, list(numbers), rows)
    if not issues:
        issues += _check_index(folder, manifest, rows)
    return issues


def adopt_shards(
    folder: Path, codec: CodecInfo | None = None, *, workers: int = 1, progress: Progress | None = None
) -> Manifest:
    """Write manifest and index for tars that have none, after reading every byte of them.

    A folder that has a manifest is checked against it and only gets a new index, so damage is not accepted.

    Args:
        folder: Tars of KEY.npy and KEY.json.
        codec: Codec that made the tokens; None takes it from the manifest or the first sample's JSON (`codec`).
        workers: Processes that read shards side by side.
        progress: Called after each shard.

    Returns:
        The manifest as written.

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
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise UserError(f"{missing[0]} is missing though the manifest lists it; copy it again.")
    else:
        for path in paths:
            _require_listable(path)
        codec = _codec_of_first_sample(paths[0]) if codec is None else codec
    scans = list(_scan_all(paths, range(len(paths)), codec, workers, progress))
    issues = [issue for scan in scans for issue in scan.issues]
    if known is not None and not issues:
        for shard, scan in zip(known.shards, scans, strict=True):
            issues += _compare(shard, scan.entry)
    rows = _join([scan.rows for scan in scans])
    issues += _find_duplicates(folder, [path.name for path in paths], rows)
    if issues:
        raise UserError(
            f"{folder}: {issues[0]} (problem 1 of {len(issues)}); repair the shards, then index them."
        )
    if not len(rows):
        raise UserError(f"the tars in {folder} hold no samples; name another folder.")
    manifest = Manifest(codec, tuple(scan.entry for scan in scans), write_index(folder, rows))
    write_manifest(folder, manifest)
    return manifest


def _require_listable(path: Path) -> None:
    try:
        check_shard_name(path.name)
    except MalformedError as error:
        raise UserError(
            f"{path.parent} holds a tar that a manifest cannot list ({error}); rename it."
        ) from error


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def _scan_all(
    paths: Sequence[Path], numbers: Sequence[int], codec: CodecInfo, workers: int, progress: Progress | None
) -> Iterator[ShardScan]:
    scan = functools.partial(scan_shard, codec=codec)
    if workers <= 1 or len(paths) <= 1:
        yield from _report(map(scan, paths, numbers), len(paths), progress)
        return
    # spawned, not forked: the caller may have threads
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from _report(pool.map(scan, paths, numbers), len(paths), progress)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that reads shards was killed, perhaps for lack of memory; try --workers 1."
            ) from error


def _report(scans: Iterator[ShardScan], total: int, progress: Progress | None) -> Iterator[ShardScan]:
    for done, scan in enumerate(scans, start=1):
        yield scan
        if progress is not None:
            progress(done, total)


def _join(rows: list[IndexRows]) -> IndexRows:
    return np.concatenate([np.empty(0, dtype=INDEX_DTYPE), *rows])


def _compare(listed: ShardEntry, found: ShardEntry) -> list[Issue]:
    """Return the first difference between the manifest and a shard that is sound in itself."""
    for name in ("bytes", "samples", "frames", "sha256"):
        expected, actual = getattr(listed, name), getattr(found, name)
        if expected != actual:
            return [Issue(listed.file, None, f"{name} is {actual} and the manifest has {expected}")]
    return []


def _find_duplicates(folder: Path, files: list[str], rows: IndexRows) -> list[Issue]:
    """Find keys that occur in two shards: equal hashes are candidates, the keys themselves decide."""
    order = np.argsort(rows["key_hash"], kind="stable")
    hashes = rows["key_hash"][order]
    issues = []
    for place in np.flatnonzero(hashes[1:] == hashes[:-1]):
        first, second = rows[order[place]], rows[order[place + 1]]
        first_file, second_file = files[int(first["shard"])], files[int(second["shard"])]
        try:
            key = _read_key(folder / second_file, second)
            if key == _read_key(folder / first_file, first):
                issues.append(Issue(second_file, key, f"is in {first_file} too (duplicate key)"))
        except (MalformedError, OSError) as error:
            issues.append(Issue(second_file, None, f"changed while it was read ({error})"))
    return issues


def _read_key(path: Path, row: np.void) -> str:
    start, end = int(row["npy_header"]), int(row["npy_offset"])
    with PlainFile(path) as file:
        return split_name(member_name(file.read(start, end - start)))[0]


def _check_index(folder: Path, manifest: Manifest, rows: IndexRows) -> list[Issue]:
    try:
        listed = read_index(folder / INDEX_NAME, manifest)
    except FileNotFoundError:
        what = "is missing"
    except OSError as error:
        return [unreadable_issue(INDEX_NAME, error)]
    except MalformedError as error:
        what = str(error)
    else:
        if np.array_equal(listed, rows):
            return []
        what = "does not describe these shards"
    return [Issue(INDEX_NAME, None, what, remedy="make it again with --write_index")]


def _codec_of_first_sample(path: Path) -> CodecInfo:
    """Read `codec` from the first JSON of a tar."""
    try:
        with PlainFile(path) as file:
            first = next((member for member in walk_tar(file) if split_name(member.name)[1] == "json"), None)
            size = min(first.size, MAX_JSON_BYTES + 1) if first is not None else 0
            record = parse_metadata(file.read(first.offset, size)) if first is not None else {}
    except OSError as error:
        raise cannot_read(path, error) from error
    except MalformedError as error:
        raise UserError(f"{path} is damaged: {error}; copy it again.") from error
    if not isinstance(record.get("codec"), dict):
        raise UserError(f"{path} does not say which codec made its tokens; name it with --codec.")
    return read_codec(record["codec"], where=f"codec in the first sample of {path}")
