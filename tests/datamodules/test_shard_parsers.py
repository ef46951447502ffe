"""Properties of every parser of foreign bytes: it reads right or says so in the project's own error, at once.

Bytes are made up from nothing and by changing sound ones; a result has to be what numpy, tarfile and json read.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.shards.files import MalformedError
from datamodules.shards.index import INDEX_DTYPE, open_index
from datamodules.shards.manifest import Manifest, ShardEntry, parse_manifest
from datamodules.shards.reading import ShardReader
from datamodules.shards.scan import MAX_CAPTION_LENGTH, parse_metadata, tokens_from_npy
from datamodules.shards.tar import member_name, split_name, walk_tar
from datamodules.shards.verify import verify_shards
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CODEC = CodecInfo(id="tiny", sha256="ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=4, card=64)
RECORD: dict[str, Any] = {
    "format": 1,
    "codec": CODEC.to_dict(),
    "samples": 2,
    "seconds": 2.4,
    "index_sha256": "0" * 64,
    "shards": [{"file": "a.tar", "bytes": 10240, "samples": 2, "frames": 120, "sha256": "1" * 64}],
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [2**63, 2**64, -1, 10**9, 10**400, 0.5, 1e308, "", "1", "..", "a\0.tar", "/a.tar", "\ud83c"]
    ),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


class BoundedBytes:
    """Bytes in memory as an archive."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, start: int, size: int) -> bytes:
        assert size <= self.size, "asked for more than the archive is large"
        return self.data[start : start + size]


def changed(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Set bytes, modulo the length."""
    copy = bytearray(data)
    for place, value in changes:
        copy[place % len(copy)] = value
    return bytes(copy)


def check_sentence(error: Exception) -> None:
    assert len(str(error)) < 400
    assert str(error).isprintable()


CHANGES = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6)


@FEW
@given(st.binary(max_size=200))
def test_any_bytes_as_manifest(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^m "):
        parse_manifest(content, "m")


def _places(record: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = (
        record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    )
    for name, value in items:
        found += _places(value, (*path, name))
    return found


@FEW
@given(st.sampled_from(_places(RECORD)), ODD, st.booleans())
def test_one_value_of_a_manifest_is_another(place: tuple[Any, ...], value: Any, missing: bool) -> None:
    record = json.loads(json.dumps(RECORD))
    within = record
    for name in place[:-1]:
        within = within[name]
    if missing:
        del within[place[-1]]
    else:
        within[place[-1]] = value
    try:
        manifest = parse_manifest(json.dumps(record).encode(), "m")
    except UserError as error:
        check_sentence(error)
        return
    assert manifest.samples > 0
    assert np.isfinite(manifest.seconds)
    assert manifest.codec.to_dict().keys() == CODEC.to_dict().keys()
    for shard in manifest.shards:
        assert 0 <= shard.samples <= shard.frames
        assert Path(shard.file).name == shard.file


NPY = io.BytesIO()
np.save(NPY, np.arange(24, dtype=np.int16).reshape(4, 6))


@FEW
@given(st.one_of(st.binary(max_size=200), CHANGES.map(lambda changes: changed(NPY.getvalue(), changes))))
def test_any_bytes_as_npy(payload: bytes) -> None:
    try:
        tokens = tokens_from_npy(payload)
    except MalformedError:
        return
    assert np.array_equal(tokens, np.load(io.BytesIO(payload), allow_pickle=False))


@FEW
@given(
    st.text(alphabet="0123456789, -()Le", max_size=80), st.sampled_from(["<i2", "<u2", "|O", "<f8", "<i20"])
)
def test_any_shape_in_an_npy(shape: str, dtype: str) -> None:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}\n".encode()
    payload = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(48)
    try:
        tokens = tokens_from_npy(payload)
    except MalformedError as error:
        check_sentence(error)
        return
    assert tokens.nbytes == 48


@pytest.mark.parametrize("digits", [19, 4000, 60_000])
def test_shapes_of_many_digits(digits: int) -> None:
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (" + b"9" * digits + b", 4), }\n"
    payload = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
    with pytest.raises(MalformedError, match=r"header"):
        tokens_from_npy(payload)


def _tar(format: int, name: str = "n" * 120) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for each in ("a.json", "a.npy", f"{name}.json", f"{name}.npy"):
            info = tarfile.TarInfo(each)
            info.size = 7
            tar.addfile(info, io.BytesIO(b"payload"))
    return buffer.getvalue()


TARS = [_tar(tarfile.PAX_FORMAT), _tar(tarfile.GNU_FORMAT), _tar(tarfile.USTAR_FORMAT, "n" * 90)]


def _with_checksums(data: bytes) -> bytes:
    """Make the checksum of each block right where it looks like a header, so that other checks are reached."""
    blocks = [bytearray(data[start : start + 512]) for start in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar":
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    return b"".join(blocks)


@FEW
@given(
    st.sampled_from(TARS),
    st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=6),
    st.booleans(),
)
def test_any_change_of_a_tar(data: bytes, changes: list[tuple[int, int]], summed: bool) -> None:
    data = changed(data, changes)
    data = _with_checksums(data) if summed else data
    try:
        members = list(walk_tar(BoundedBytes(data)))
    except MalformedError as error:
        check_sentence(error)
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = [member.name for member in tar]
    # tarfile strips slashes at the end; what is left out, if anything, is refused by its name
    assert [member.name.rstrip("/") for member in members] == names
    for member in members:
        assert member_name(data[member.header : member.offset]) == member.name


@FEW
@given(st.integers(0, 2**80), st.sampled_from([b"0", b"x", b"L", b"g"]))
def test_any_size_in_a_tar_header(size: int, kind: bytes) -> None:
    block = bytearray(_tar(tarfile.USTAR_FORMAT, "n")[:512])
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[156:157] = kind
    data = _with_checksums(bytes(block) + bytes(1024))
    try:
        list(walk_tar(BoundedBytes(data)))
    except MalformedError:
        return
    assert size <= 1024


@FEW
@given(st.binary(max_size=60))
def test_any_bytes_in_a_pax_header(payload: bytes) -> None:
    header = tarfile.TarInfo("a.npy")
    header.size, header.type = len(payload), tarfile.XHDTYPE
    file = tarfile.TarInfo("b.npy").tobuf(tarfile.USTAR_FORMAT)
    data = header.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % 512) + file + bytes(1024)
    try:
        (member,) = walk_tar(BoundedBytes(data))
    except MalformedError:
        return
    assert split_name(member.name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@FEW
@given(st.one_of(st.binary(max_size=80), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_json_of_a_sample(payload: bytes) -> None:
    try:
        record = parse_metadata(payload)
    except MalformedError:
        return
    assert record == json.loads(payload)
    json.dumps(record, allow_nan=False, ensure_ascii=False).encode()
    assert isinstance(record.get("text", ""), str)


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (b'{"text": "x \\ud83c"}', "half of a surrogate pair"),
        (b'{"a": ["\\udf00"]}', "half of a surrogate pair"),
        (b'{"text": "a", "text": "b"}', "'text' occurs twice"),
        (b'{"bpm": NaN}', "NaN is not JSON"),
        (b'{"bpm": 1e400}', "too large a number"),
        (b'{"bpm": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"genre": ' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper than 32"),
        (b"[" * 10**5, "unreadable"),
        (b'{"text": "' + b"x" * (MAX_CAPTION_LENGTH + 1) + b'"}', "text has 10001 characters"),
        (
            b'{"keywords": "' + b"x" * (MAX_CAPTION_LENGTH + 1) + b'"}',
            "keywords, key, bpm have 10001 characters",
        ),
        (b'{"x": "' + b"x" * 2**20 + b'"}', "more than 1048576"),
        (b'{"text": "\xff"}', "unreadable"),
    ],
)
def test_odd_json_of_a_sample(payload: bytes, what: str) -> None:
    with pytest.raises(MalformedError, match=what):
        parse_metadata(payload)


def test_sound_json_of_a_sample() -> None:
    text = "x" * MAX_CAPTION_LENGTH
    assert parse_metadata(json.dumps({"text": text}).encode())["text"] == text
    assert parse_metadata(b'{"text": "\\ud83c\\udf00 \\\\ud83c"}')["text"] == "\U0001f300 \\ud83c"
    assert parse_metadata(json.dumps({"text": "é" * 9000, "x": "y" * 20000}).encode())


@FEW
@given(
    st.sampled_from(list(INDEX_DTYPE.names or ())),
    st.integers(0, 2),
    st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([2**63, 2**64 - 1, 2**64 - 100, 2**32 - 1, 0])),
)
def test_any_number_in_an_index(tmp_path: Path, field: str, row: int, value: int) -> None:
    """Whatever passes can be read with one bounded read."""
    import hashlib

    rows = np.zeros(3, dtype=INDEX_DTYPE)
    for number in range(3):
        start = number * 2048
        rows[number] = (0, 9, 80 + 72, 10, start + 1024, start + 1536, start + 512, number)
    rows[row][field] = value & (2 ** (8 * INDEX_DTYPE[field].itemsize) - 1)
    np.save(tmp_path / "index.npy", rows)
    digest = hashlib.sha256((tmp_path / "index.npy").read_bytes()).hexdigest()
    manifest = Manifest(CODEC, (ShardEntry("a.tar", 10240, 3, 27, "0" * 64),), digest)
    try:
        found = open_index(tmp_path, manifest)
    except UserError:
        return
    for each in found.tolist():
        _, _, npy_bytes, json_bytes, npy_header, npy_offset, json_offset, _ = each
        assert 0 <= max(npy_offset + npy_bytes, json_offset + json_bytes) <= 10240
        assert min(npy_header, json_offset) >= 0


@FEW
@given(st.sampled_from(["manifest.json", "index.npy", "shard-000000.tar"]), CHANGES, st.integers(0, 3))
def test_what_verify_calls_sound_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, int]], cut: int
) -> None:
    folder = _SOUND.get("folder") or _make(tmp_path_factory.mktemp("sound") / "shards")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(changed(whole, changes)[: len(whole) - cut * 7])
    try:
        problems: list[Any] = verify_shards(folder)
    except UserError as error:
        problems = [error]
    try:
        reader = ShardReader(folder)
        read = [reader[number] for number in range(len(reader))]
    except UserError:
        assert problems, "verify calls sound what cannot be read"
    else:
        assert problems or len(read) == 3
    finally:
        (folder / name).write_bytes(whole)


_SOUND: dict[str, Path] = {}


def _make(folder: Path) -> Path:
    from harness.shard_writer import ShardWriter

    with ShardWriter(folder, CODEC) as writer:
        for number in range(3):
            writer.add(f"clip{number}", np.full((4, 20), number), {"text": f"sound {number}"})
    _SOUND["folder"] = folder
    return folder
