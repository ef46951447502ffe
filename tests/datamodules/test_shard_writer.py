"""Shards are whole or absent, and any WebDataset reader can read them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.shards.reading import ShardReader
from datamodules.shards.verify import verify_shards
from harness.shard_writer import ShardWriter
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo


def test_what_is_written_is_read(make_shards: Any, clip_tokens: Any) -> None:
    folder = make_shards(clips=12, frames=lambda n: 20 + n, shard_bytes=6_000)
    reader = ShardReader(folder)
    assert len(list(folder.glob("*.tar"))) > 2
    assert len(reader) == 12
    for number, sample in enumerate(reader[i] for i in range(12)):
        assert sample.key == f"clip{number:04d}"
        assert sample.metadata == {"text": f"sound {number}", "number": number}
        np.testing.assert_array_equal(sample.tokens, clip_tokens(number, 20 + number))
        assert sample.tokens.dtype == np.int16


def test_manifest_counts(make_shards: Any) -> None:
    folder = make_shards(clips=12, frames=50, shard_bytes=20_000)
    record = json.loads((folder / "manifest.json").read_text())
    assert record["format"] == 1
    assert record["seconds"] == 12.0
    assert sum(shard["samples"] for shard in record["shards"]) == 12
    assert [shard["bytes"] for shard in record["shards"]] == [
        (folder / shard["file"]).stat().st_size for shard in record["shards"]
    ]


def test_webdataset_reads_them(make_shards: Any, clip_tokens: Any) -> None:
    import webdataset as wds

    folder = make_shards(clips=5)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"clip{n:04d}" for n in range(5)]
    np.testing.assert_array_equal(samples[3]["npy"], clip_tokens(3, 60))
    assert samples[3]["json"]["text"] == "sound 3"


def test_same_clips_same_bytes(make_shards: Any) -> None:
    first, second = make_shards(name="first"), make_shards(name="second")
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_large_codebooks_are_unsigned(tmp_path: Path, codec: CodecInfo) -> None:
    wide = CodecInfo(**{**codec.to_dict(), "card": 60_000})
    tokens = np.array([[0, 59_999]] * 4)
    with ShardWriter(tmp_path / "wide", wide) as writer:
        writer.add("a", tokens, {"text": ""})
    sample = ShardReader(tmp_path / "wide")[0]
    assert sample.tokens.dtype == np.uint16
    np.testing.assert_array_equal(sample.tokens, tokens)
    assert verify_shards(tmp_path / "wide") == []


@pytest.mark.parametrize("limit", [5_000, 25_000])
def test_no_room_on_disk_leaves_nothing(
    tmp_path: Path, codec: CodecInfo, clip_tokens: Any, no_file_larger_than: Any, limit: int
) -> None:
    folder = tmp_path / "shards"

    def write() -> None:
        with ShardWriter(folder, codec) as writer:
            for number in range(40):
                writer.add(f"clip{number}", clip_tokens(number, 400), {"text": ""})

    with (
        no_file_larger_than(limit),
        pytest.raises(UserError, match=r"no room on disk for .*shard-000000\.tar"),
    ):
        write()
    assert not folder.exists()


def test_a_failure_undoes_finished_shards(tmp_path: Path, codec: CodecInfo, clip_tokens: Any) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")

    def write() -> None:
        with ShardWriter(folder, codec, shard_bytes=10) as writer:
            writer.add("a", clip_tokens(0, 10), {"text": ""})
            writer.add("b", clip_tokens(1, 10), {"text": ""})
            assert (folder / "shard-000001.tar").exists()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_nothing_added_leaves_nothing(tmp_path: Path, codec: CodecInfo) -> None:
    with pytest.raises(UserError, match="no clip"), ShardWriter(tmp_path / "shards", codec):
        pass
    assert not (tmp_path / "shards").exists()


def test_existing_shards_are_not_mixed_in(make_shards: Any, codec: CodecInfo) -> None:
    with pytest.raises(UserError, match="holds shards already"):
        ShardWriter(make_shards(), codec)


@pytest.mark.parametrize("key", ["a.b", "a/b", "../x", "", "x" * 91, "nul\0"])
def test_keys_that_would_not_come_back_are_refused(
    tmp_path: Path, codec: CodecInfo, clip_tokens: Any, key: str
) -> None:
    with pytest.raises(ValueError, match="key"), ShardWriter(tmp_path / "shards", codec) as writer:
        writer.add(key, clip_tokens(0, 10), {})


@pytest.mark.parametrize(
    "bad", [np.full((4, 5), 64), np.full((4, 5), -1), np.zeros((3, 5), int), np.zeros((4, 0), int)]
)
def test_tokens_of_another_codec_are_refused(tmp_path: Path, codec: CodecInfo, bad: Any) -> None:
    with (
        pytest.raises(ValueError),  # noqa: PT011  # four messages, all of check_tokens
        ShardWriter(tmp_path / "shards", codec) as writer,
    ):
        writer.add("a", bad, {})


def test_a_key_is_added_once(tmp_path: Path, codec: CodecInfo, clip_tokens: Any) -> None:
    def write() -> None:
        with ShardWriter(tmp_path / "shards", codec) as writer:
            writer.add("a", clip_tokens(0, 10), {})
            writer.add("a", clip_tokens(0, 10), {})

    with pytest.raises(ValueError, match="added before"):
        write()
    assert not (tmp_path / "shards").exists()


def test_members_are_plain_ustar(make_shards: Any) -> None:
    path = next(make_shards(clips=1).glob("*.tar"))
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["clip0000.json", "clip0000.npy"]
        assert {member.mtime for member in tar} == {0}
