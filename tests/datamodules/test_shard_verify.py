"""Every kind of damage is found and named; damage of size stops a run at its start."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.shards.reading import ShardReader
from datamodules.shards.verify import adopt_shards, verify_shards
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


GOOD = npy(np.zeros((4, 9), dtype=np.int16))
META = b'{"text": "x"}'


def first_tar(folder: Path) -> Path:
    return folder / "shard-000000.tar"


def test_sound_shards_have_no_problems(make_shards: Any) -> None:
    folder = make_shards(clips=12, shard_bytes=20_000)
    seen: list[tuple[int, int]] = []
    assert verify_shards(folder, progress=lambda done, total: seen.append((done, total))) == []
    assert seen[-1][0] == seen[-1][1] == len(seen) > 1


def test_several_processes_find_the_same(make_shards: Any) -> None:
    folder = make_shards(clips=12, shard_bytes=20_000)
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert verify_shards(folder, workers=2) == verify_shards(folder) != []


def test_fifty_truncations_are_found_and_refused(make_shards: Any) -> None:
    folder = make_shards(clips=20)
    path = first_tar(folder)
    whole = path.read_bytes()
    offsets = np.random.default_rng(0).integers(0, len(whole), 44).tolist()
    for size in [*offsets, 0, 511, 512, 1024, len(whole) - 512, len(whole) - 1]:
        path.write_bytes(whole[:size])
        problems = verify_shards(folder)
        assert problems, size
        assert problems[0].shard == path.name
        with pytest.raises(UserError, match=r"shard-000000\.tar .*truncated"):
            ShardReader(folder)
    path.write_bytes(whole)
    assert verify_shards(folder) == []


def test_truncation_names_the_last_sound_key(make_shards: Any) -> None:
    folder = make_shards(clips=20)
    path = first_tar(folder)
    path.write_bytes(path.read_bytes()[:20_000])
    texts = [str(problem) for problem in verify_shards(folder)]
    assert any("after key clip00" in text and "truncated" in text for text in texts), texts


def flip(path: Path, byte: int, bit: int) -> bytes:
    whole = path.read_bytes()
    data = bytearray(whole)
    data[byte] ^= 1 << bit
    path.write_bytes(data)
    return whole


def test_header_flips_are_found_without_the_hash(make_shards: Any) -> None:
    """Bits flipped in names, modes and sizes: the checksum has to notice, not only sha256."""
    folder = make_shards(clips=20)
    path = first_tar(folder)
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    random = np.random.default_rng(1)
    for header in random.choice(headers, 50):
        whole = flip(path, int(header) + int(random.integers(0, 148)), int(random.integers(0, 8)))
        problems = verify_shards(folder)
        path.write_bytes(whole)
        assert any("tar" in p.what and "header" in p.what for p in problems), problems


def test_payload_flips_are_found(make_shards: Any) -> None:
    folder = make_shards(clips=20)
    path = first_tar(folder)
    random = np.random.default_rng(2)
    size = path.stat().st_size
    for _ in range(50):
        whole = flip(path, int(random.integers(0, size)), int(random.integers(0, 8)))
        assert verify_shards(folder), "a flipped bit went unnoticed"
        path.write_bytes(whole)


def test_swapped_tokens_in_range_fail_the_hash(make_shards: Any) -> None:
    folder = make_shards(clips=3)
    with tarfile.open(first_tar(folder)) as tar:
        token = tar.getmember("clip0001.npy").offset_data + 128
    flip(first_tar(folder), token, 0)
    assert "sha256" in str(verify_shards(folder)[0])


BAD_MEMBERS: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "token too large": (
        [("a.npy", npy(np.full((4, 9), 64, np.int16))), ("a.json", META)],
        "64..64 leave 0..63",
    ),
    "token negative": ([("a.npy", npy(np.full((4, 9), -1, np.int16))), ("a.json", META)], "leave 0..63"),
    "two codebooks": (
        [("a.npy", npy(np.zeros((2, 9), np.int16))), ("a.json", META)],
        "2 codebooks instead of 4",
    ),
    "no frames": ([("a.npy", npy(np.zeros((4, 0), np.int16))), ("a.json", META)], "no frames"),
    "float64": ([("a.npy", npy(np.zeros((4, 9)))), ("a.json", META)], "'<f8' is neither"),
    "int64": ([("a.npy", npy(np.zeros((4, 9), np.int64))), ("a.json", META)], "'<i8' is neither"),
    "one axis": ([("a.npy", npy(np.zeros(9, np.int16))), ("a.json", META)], r"shape \[9\] is not"),
    "fortran": ([("a.npy", npy(np.zeros((9, 4), np.int16).T)), ("a.json", META)], "Fortran"),
    "short payload": ([("a.npy", GOOD[:-2]), ("a.json", META)], "needs 200 bytes and has 198"),
    "no npy": ([("a.npy", b"hello"), ("a.json", META)], "not a .npy file"),
    "missing json": ([("a.npy", GOOD)], r"its \.json is missing"),
    "missing npy": ([("a.json", META)], r"its \.npy is missing"),
    "broken json": ([("a.npy", GOOD), ("a.json", b'{"text": ')], "unreadable"),
    "deep json": ([("a.npy", GOOD), ("a.json", b"[" * 100_000)], "unreadable"),
    "json list": ([("a.npy", GOOD), ("a.json", b"[1]")], "list, not an object"),
    "text number": ([("a.npy", GOOD), ("a.json", b'{"text": 3}')], "text is a int"),
    "twice in a row": ([("a.npy", GOOD), ("a.npy", GOOD), ("a.json", META)], "duplicate key"),
    "twice far apart": (
        [
            ("a.npy", GOOD),
            ("a.json", META),
            ("b.npy", GOOD),
            ("b.json", META),
            ("a.npy", GOOD),
            ("a.json", META),
        ],
        "duplicate key",
    ),
    "other member": ([("a.npy", GOOD), ("a.json", META), ("a.wav", b"RIFF")], "a.wav is neither"),
    "climbing": ([("../../a.npy", GOOD), ("../../a.json", META)], "leads out of the folder"),
    "absolute": ([("/tmp/a.npy", GOOD), ("/tmp/a.json", META)], "leads out of the folder"),
    "no name": ([(".npy", GOOD), (".json", META)], "name is empty"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_bad_samples_are_named(tmp_path: Path, codec: CodecInfo, case: str) -> None:
    members, message = BAD_MEMBERS[case]
    write_tar(tmp_path / "x" / "foreign.tar", members)
    with pytest.raises(UserError, match=message) as caught:
        adopt_shards(tmp_path / "x", codec)
    assert "foreign.tar, key" in str(caught.value)
    assert not (tmp_path / "x" / "manifest.json").exists()


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("extension", ["pickle", "pyd", "pth", "npy"])
def test_pickles_are_refused_and_do_nothing(
    tmp_path: Path, codec: CodecInfo, make_shards: Any, extension: str
) -> None:
    import pickle

    mark = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(mark))
    if extension == "npy":
        bomb = npy(np.array([[Bomb(mark)]], dtype=object), allow_pickle=True)
    write_tar(tmp_path / "x" / "evil.tar", [(f"a.{extension}", bomb), ("a.json", META)])
    with pytest.raises(UserError, match="neither"):
        adopt_shards(tmp_path / "x", codec)
    folder = make_shards()  # and in the place of a sound shard
    first_tar(folder).write_bytes((tmp_path / "x" / "evil.tar").read_bytes())
    assert any("neither" in problem.what for problem in verify_shards(folder))
    with pytest.raises(UserError):
        ShardReader(folder)[0]
    assert not mark.exists()


def test_links_in_a_tar_are_refused(tmp_path: Path, codec: CodecInfo) -> None:
    (tmp_path / "x").mkdir()
    with tarfile.open(tmp_path / "x" / "evil.tar", "w") as tar:
        info = tarfile.TarInfo("a.npy")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match="is not a regular file"):
        adopt_shards(tmp_path / "x", codec)


def test_keys_are_unique_over_shards(tmp_path: Path, codec: CodecInfo) -> None:
    for name in ("one.tar", "two.tar"):
        write_tar(tmp_path / "x" / name, [("a.npy", GOOD), ("a.json", META)])
    with pytest.raises(UserError, match=r"two\.tar, key a: is in one\.tar too"):
        adopt_shards(tmp_path / "x", codec)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_foreign_tars_are_adopted(tmp_path: Path, codec: CodecInfo, format: int) -> None:
    """Folders in names, names longer than a header, letters beyond ASCII, json before npy: all are legal."""
    long = "album/" + "n" * 120 if format != tarfile.USTAR_FORMAT else "f" * 80 + "/" + "n" * 80
    names = ["plain", "album/tune", long, "./rooted/größe"]
    members = [(f"{name}.{ext}", GOOD if ext == "npy" else META) for name in names for ext in ("json", "npy")]
    write_tar(tmp_path / "x" / "foreign.tar", members, format)
    manifest = adopt_shards(tmp_path / "x", codec)
    assert manifest.samples == 4
    assert verify_shards(tmp_path / "x") == []
    reader = ShardReader(tmp_path / "x")
    assert [reader[i].key for i in range(4)] == names


def test_adopting_takes_the_codec_from_the_first_sample(tmp_path: Path, codec: CodecInfo) -> None:
    meta = json.dumps({"text": "x", "codec": codec.to_dict()}).encode()
    write_tar(tmp_path / "x" / "a.tar", [("a.npy", GOOD), ("a.json", meta)])
    assert adopt_shards(tmp_path / "x").codec == codec


def test_adopting_without_a_codec_asks_for_one(tmp_path: Path) -> None:
    write_tar(tmp_path / "x" / "a.tar", [("a.npy", GOOD), ("a.json", META)])
    with pytest.raises(UserError, match="--codec"):
        adopt_shards(tmp_path / "x")


def test_adopting_with_another_codec_than_the_manifest_has(make_shards: Any, codec: CodecInfo) -> None:
    other = replace(codec, id="other", n_q=codec.n_q + 1)
    with pytest.raises(UserError, match=r"--codec holds those of other .*; leave --codec out, or name the"):
        adopt_shards(make_shards(), other)


def test_adopting_an_empty_folder(tmp_path: Path, codec: CodecInfo) -> None:
    with pytest.raises(UserError, match=r"no \.tar"):
        adopt_shards(tmp_path, codec)


def test_a_lost_index_is_made_again(make_shards: Any) -> None:
    folder = make_shards()
    before = (folder / "index.npy").read_bytes()
    (folder / "index.npy").unlink()
    assert "index.npy: is missing" in str(verify_shards(folder)[0])
    with pytest.raises(UserError, match="--write_index"):
        ShardReader(folder)
    adopt_shards(folder)
    assert (folder / "index.npy").read_bytes() == before
    assert verify_shards(folder) == []


def test_a_damaged_index_is_found(make_shards: Any) -> None:
    folder = make_shards()
    flip(folder / "index.npy", -5, 3)
    assert verify_shards(folder)[0].shard == "index.npy"


def test_damage_is_not_blessed_by_a_new_index(make_shards: Any) -> None:
    folder = make_shards(clips=3)
    with tarfile.open(first_tar(folder)) as tar:
        token = tar.getmember("clip0001.npy").offset_data + 128
    flip(first_tar(folder), token, 0)
    with pytest.raises(UserError, match="sha256"):
        adopt_shards(folder)


def test_missing_and_extra_shards(make_shards: Any) -> None:
    folder = make_shards(clips=12, shard_bytes=20_000)
    (folder / "shard-000001.tar").rename(folder / "stray.tar")
    texts = [str(problem) for problem in verify_shards(folder)]
    assert "stray.tar: lies in the folder but the manifest does not list it" in texts
    assert "shard-000001.tar: is missing though the manifest lists it" in texts
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing"):
        ShardReader(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2 and this version reads format 1"),
        ({"shards": [{"file": "../evil.tar", "bytes": 1, "samples": 1, "frames": 1, "sha256": ""}]}, "evil"),
        ({"shards": [{}]}, "file"),
        ({"codec": {"id": "x"}}, "lacks sha256"),
    ],
)
def test_bad_manifests(make_shards: Any, change: dict[str, Any], message: str) -> None:
    folder = make_shards()
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        ShardReader(folder)


def test_a_manifest_that_is_no_json(make_shards: Any) -> None:
    folder = make_shards()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is unreadable"):
        ShardReader(folder)


def test_no_shards_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder at .*magnet-train tokenize"):
        ShardReader(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no shards"):
        ShardReader(tmp_path)
    (tmp_path / "a.tar").touch()
    with pytest.raises(UserError, match="--write_index"):
        ShardReader(tmp_path)


def test_reading_a_damaged_clip_names_shard_and_key(make_shards: Any) -> None:
    folder = make_shards(clips=3)
    with tarfile.open(first_tar(folder)) as tar:
        token = tar.getmember("clip0001.npy").offset_data + 128
    flip(first_tar(folder), token + 1, 6)  # the high byte: far above card
    with pytest.raises(UserError, match=r"clip clip0001 in .*shard-000000\.tar is damaged: tokens"):
        ShardReader(folder)[1]


def damage_index(folder: Path, change: Callable[[Any], Any]) -> None:
    rows = np.load(folder / "index.npy")
    np.save(folder / "index.npy", change(rows))


def beyond_the_end(rows: Any) -> Any:
    rows["npy_offset"][0] = 2**40
    return rows


def another_shard(rows: Any) -> Any:
    rows["shard"][0] = 7
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "has 9 clips and the manifest 10"),
        (lambda rows: rows["frames"].copy(), "not an index of this version"),
        (beyond_the_end, "points outside its shards"),
        (another_shard, "points outside its shards"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(make_shards: Any, change: Any, message: str) -> None:
    folder = make_shards(clips=10)
    damage_index(folder, change)
    with pytest.raises(UserError, match=message):
        ShardReader(folder)


def test_an_index_cut_short_is_refused(make_shards: Any) -> None:
    folder = make_shards(clips=10)
    path = folder / "index.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"index\.npy is unreadable"):
        ShardReader(folder)


def test_files_are_closed_and_opened_again(make_shards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.shards.reading._MAX_OPEN_FILES", 1)
    reader = ShardReader(make_shards(clips=12, shard_bytes=20_000))
    assert len(reader.manifest.shards) > 1
    before = len(os.listdir("/proc/self/fd"))
    for number in (0, 11, 0, 11, 0):
        assert reader[number].key == f"clip{number:04d}"
        assert len(os.listdir("/proc/self/fd")) == before + 1


def test_an_unfinished_folder_is_named_so(tmp_path: Path, codec: CodecInfo) -> None:
    write_tar(tmp_path / "x" / "shard-000000.tar", [("a.npy", GOOD), ("a.json", META)])
    (tmp_path / "x" / "tokenize.json").write_text("{}")
    for look in (verify_shards, ShardReader, lambda folder: adopt_shards(folder, codec)):
        with pytest.raises(UserError, match="is unfinished; give the tokenize command"):
            look(tmp_path / "x")
