"""Shards as other people write, damage and serve them: one sentence from `verify` and from training alike."""

from __future__ import annotations

import hashlib
import http.server
import io
import itertools
import json
import os
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datamodules.shards.remote as remote
import datamodules.shards.remote_files as remote_files
from datamodules import TokenDataModule
from datamodules.shards.files import MalformedError, PlainFile
from datamodules.shards.index import INDEX_NAME
from datamodules.shards.reading import ShardReader
from datamodules.shards.remote import ShardCache
from datamodules.shards.scan import MAX_CAPTION_LENGTH
from datamodules.shards.tar import walk_tar
from datamodules.shards.verify import adopt_shards, verify_shards
from harness.shard_writer import ShardWriter
from magnet_train.cli.main import main
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo(id="tiny", sha256="ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=4, card=64)
OPTIONS: dict[str, Any] = {"segment_duration": 1.0, "batch_size": 4}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "shards", CODEC, shard_bytes=20_000) as writer:
        for number in range(24):
            writer.add(f"clip{number:02d}", np.full((4, 60), number), {"text": f"sound {number}"})
    return tmp_path / "shards"


def train(folder: Path, workers: int = 0, batches: int = 4) -> None:
    """Read batches as `fit` does."""
    data = TokenDataModule(str(folder), num_workers=workers, **OPTIONS)
    data.setup()
    list(itertools.islice(data.train_dataloader(), batches))
    list(data.val_dataloader())


def refused_by_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Give the sentence of the command `verify` and that of training."""
    assert main(["verify", str(folder)]) == 1
    told = capsys.readouterr()
    assert "all sound" not in told.out
    assert "Traceback" not in told.err
    with pytest.raises(UserError) as caught:
        train(folder)
    last = told.err.strip().splitlines()[-1]  # after the bar
    assert last.startswith("magnet-train: error: ")
    for sentence in (last, str(caught.value)):
        assert len(sentence) < 1000
        assert sentence.isprintable()
    return told.out + told.err, str(caught.value)


@pytest.mark.case("B15")
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_that_shrink_under_a_run(shards: Path, workers: int) -> None:
    data = TokenDataModule(str(shards), num_workers=workers, **OPTIONS)
    data.setup()
    batches = iter(data.train_dataloader())
    next(batches)
    for path in shards.glob("*.tar"):  # a worker that starts late reads the manifest and the index now
        os.truncate(path, 200)
    with pytest.raises(UserError, match=r"is damaged: the file ends at byte 200"):
        list(itertools.islice(batches, 50))


@pytest.mark.case("B15")
def test_a_folder_that_shrinks_under_a_run(shards: Path) -> None:
    data = TokenDataModule(str(shards), num_workers=2, **OPTIONS)
    data.setup()
    batches = iter(data.train_dataloader())
    next(batches)
    for path in shards.iterdir():
        os.truncate(path, 200)
    with pytest.raises(UserError, match=r"shards/\S+ is (damaged|unreadable)"):
        list(itertools.islice(batches, 50))


@pytest.mark.case("B15")
def test_an_index_that_shrinks_under_a_run(shards: Path) -> None:
    reader = ShardReader(shards)
    os.truncate(shards / INDEX_NAME, 200)
    assert [reader[number].key for number in range(24)] == [f"clip{number:02d}" for number in range(24)]
    with pytest.raises(UserError, match=r"index\.npy is unreadable .*--write_index"):
        ShardReader(shards)


@pytest.mark.case("B15")
def test_a_shard_that_shrinks_under_verify(shards: Path) -> None:
    path = shards / "shard-000000.tar"
    with PlainFile(path) as file:
        members = walk_tar(file)
        next(members)
        os.truncate(path, 700)
        with pytest.raises(MalformedError, match="the file ends at byte 700"):
            list(members)
        with pytest.raises(MalformedError, match="the file ends at byte 700"):
            file.sha256()


def set_in_manifest(folder: Path, *place: Any, value: str) -> None:
    """Put JSON as it is written there in place of a value of the manifest."""
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    within = record
    for name in place[:-1]:
        within = within[name]
    within[place[-1]] = "HERE"
    path.write_text(json.dumps(record).replace('"HERE"', value))


def test_a_manifest_of_a_billion_codebooks(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest's half of B18."""
    for value in ("1000000000", "100"):
        set_in_manifest(shards, "codec", "n_q", value=value)
        for sentence in refused_by_both(shards, capsys):
            assert "codebooks" in sentence or "n_q" in sentence


@pytest.mark.case("B19")
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("shards", 0, "bytes"), "1e400"),
        (("shards", 0, "bytes"), "-1"),
        (("shards", 0, "bytes"), "true"),
        (("shards", 0, "bytes"), "10240.0"),
        (("shards", 0, "bytes"), "9" * 5000),
        (("shards", 0, "samples"), "9223372036854775807"),
        (("shards", 0, "frames"), '"720"'),
        (("shards", 0, "frames"), "null"),
        (("shards", 0, "sha256"), '"x"'),
        (("shards", 0, "file"), '"a\\u0000.tar"'),
        (("shards", 0, "file"), '".."'),
        (("shards", 0, "file"), '""'),
        (("shards", 0, "file"), '"/etc/passwd"'),
        (("shards", 0, "file"), '"x\\ud83c.tar"'),
        (("shards", 0, "file"), '"manifest.json"'),
        (("shards", 0, "file"), '"shard-000001.tar"'),
        (("shards", 0), "[" * 100_000),
        (("shards", 0), "7"),
        (("shards",), "[]"),
        (("shards",), "{}"),
        (("codec",), "[]"),
        (("codec", "id"), '"\\u001b[31m"'),
        (("codec", "frame_rate"), "0"),
        (("codec", "frame_rate"), "-50"),
        (("codec", "frame_rate"), "NaN"),
        (("codec", "n_q"), "4.0"),
        (("format",), "2"),
        (("format",), "true"),
        (("index_sha256",), "1"),
        (("index_sha256",), '"a", "index_sha256": "b"'),
    ],
)
def test_crafted_manifests(
    shards: Path, capsys: pytest.CaptureFixture[str], place: tuple[Any, ...], value: str
) -> None:
    set_in_manifest(shards, *place, value=value)
    for sentence in refused_by_both(shards, capsys):
        assert "manifest.json" in sentence


@pytest.mark.case("B20")
@pytest.mark.parametrize(
    ("name", "value"),
    [("frame_rate", "Infinity"), ("frame_rate", "1e999"), ("card", "1000000000"), ("card", "0")],
)
def test_what_verify_called_sound(
    shards: Path, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    set_in_manifest(shards, "codec", name, value=value)
    for sentence in refused_by_both(shards, capsys):
        assert "manifest.json" in sentence


@pytest.mark.case("B19")
@pytest.mark.parametrize("field", ["npy_offset", "json_offset", "npy_header", "npy_bytes", "shard", "frames"])
def test_indexes_that_wrap(shards: Path, capsys: pytest.CaptureFixture[str], field: str) -> None:
    rows = np.load(shards / INDEX_NAME)
    rows[field][3] = np.iinfo(rows[field].dtype).max - 8
    np.save(shards / INDEX_NAME, rows)
    digest = hashlib.sha256((shards / INDEX_NAME).read_bytes()).hexdigest()
    set_in_manifest(shards, "index_sha256", value=f'"{digest}"')
    for sentence in refused_by_both(shards, capsys):
        assert "index.npy" in sentence


def crafted(folder: Path, npy: bytes, meta: bytes) -> Path:
    """Write a folder by hand whose second clip has these bytes, with a manifest and an index that agree."""
    from datamodules.shards.index import INDEX_DTYPE, key_hash, write_index
    from datamodules.shards.manifest import Manifest, ShardEntry, write_manifest

    folder.mkdir()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 60), np.int16))
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, ours in (("a", False), ("b", True), ("c", False)):
            for kind, payload in (
                ("json", meta if ours else b"{}"),
                ("npy", npy if ours else buffer.getvalue()),
            ):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    with tarfile.open(folder / "a.tar") as tar:
        at = {member.name: member for member in tar}
    rows = np.array(
        [
            (0, 60, npy.size, json_.size, npy.offset, npy.offset_data, json_.offset_data, key_hash(key))
            for key, npy, json_ in ((key, at[f"{key}.npy"], at[f"{key}.json"]) for key in "abc")
        ],
        dtype=INDEX_DTYPE,
    )
    data = (folder / "a.tar").read_bytes()
    entry = ShardEntry("a.tar", len(data), 3, 180, hashlib.sha256(data).hexdigest())
    write_manifest(folder, Manifest(CODEC, (entry,), write_index(folder, rows)))
    return folder


def npy_of(shape: bytes) -> bytes:
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (" + shape + b"), }\n"
    return b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + bytes(480)


SOUND_NPY = npy_of(b"4, 60")


@pytest.mark.case("B19")
@pytest.mark.parametrize(
    ("npy", "meta"),
    [
        (npy_of(b"9" * 60_000 + b", 4"), b"{}"),
        (npy_of(b"9" * 18 + b", 4"), b"{}"),
        (npy_of(b"-4, 60"), b"{}"),
        (npy_of(b"4L, 60L"), b"{}"),
        (SOUND_NPY, b'{"text": "x \\ud83c"}'),
        (SOUND_NPY, b'{"text": "' + b"x" * 10**6 + b'"}'),
        (SOUND_NPY, b'{"text": "' + b"x" * (MAX_CAPTION_LENGTH + 1) + b'"}'),
        (SOUND_NPY, b'{"text": "x", "keywords": ["' + b"x" * 10**5 + b'"]}'),
        (SOUND_NPY, b'{"genre": ' + b"[" * 900 + b"]" * 900 + b"}"),
        (SOUND_NPY, b"[" * 10**5),
        (SOUND_NPY, b'{"text": "x", "text": "y"}'),
        (SOUND_NPY, b'{"bpm": 1e400}'),
        (SOUND_NPY, b'{"x": "' + b"x" * 2**20 + b'"}'),
    ],
)
def test_crafted_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str], npy: bytes, meta: bytes) -> None:
    folder = crafted(tmp_path / "x", npy, meta)
    for sentence in refused_by_both(folder, capsys):
        assert "a.tar" in sentence or "index.npy" in sentence
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"a\.tar, key b"):
        adopt_shards(folder, CODEC)


def test_crafted_clips_that_are_sound(tmp_path: Path) -> None:
    """So that the test above shows what it says."""
    folder = crafted(tmp_path / "x", SOUND_NPY, b'{"text": "' + b"x" * MAX_CAPTION_LENGTH + b'"}')
    assert verify_shards(folder) == []
    train(folder)


@pytest.mark.case("B19")
@pytest.mark.parametrize("name", ["manifest.json", INDEX_NAME, "shard-000000.tar"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "socket", "loop"])
def test_files_that_are_no_files(
    shards: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    path = shards / name
    path.unlink()
    make: dict[str, Callable[[], object]] = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "socket": lambda: _bind(path),
        "loop": lambda: path.symlink_to(path.name),
    }
    make[kind]()
    for sentence in refused_by_both(shards, capsys):
        assert name in sentence
    if name.endswith(".tar"):
        (shards / "manifest.json").unlink()
        with pytest.raises(UserError, match=name):
            adopt_shards(shards, CODEC)


def _bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        name = self.path.rpartition("/")[2]
        server.asked.append(name)
        fault = server.faults.pop(0) if server.faults and name == server.at else None
        if fault == "silence":
            server.over.wait(30)
            return
        if fault is not None:
            self.send_response(503 if fault == "503" else 429)
            if fault.isdigit() and fault != "503":
                self.send_header("Retry-After", fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = (server.folder / name).read_bytes()
        self.send_response(200)
        if not server.endless:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        while server.endless:
            self.wfile.write(b" " * 2**16)

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    endless = False
    at = "manifest.json"

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/shards"
        self.folder = folder
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.over = threading.Event()

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[_Server]:
    made = _Server(shards)
    thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()
    thread.join()
    while remote._in_use:
        remote._in_use.pop().close()


@pytest.mark.case("B21")
def test_a_silent_server(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert remote_files._SILENCE * remote_files._ATTEMPTS < 60
    monkeypatch.setattr(remote_files, "_SILENCE", 0.3)
    monkeypatch.setattr(remote_files, "_PAUSE", 0.001)
    server.faults = ["silence"] * 9
    with pytest.raises(UserError, match=r"manifest\.json cannot be read \(no answer for 0\.3 s\); try again"):
        ShardCache(str(tmp_path / "cache")).local_folder(server.url)
    assert caplog.text.count("no answer") == remote_files._ATTEMPTS - 1


@pytest.mark.case("B22")
def test_waiting_as_the_server_asks(
    server: _Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = ["2"]
    start = time.monotonic()
    assert verify_shards(ShardCache(str(tmp_path / "cache")).local_folder(server.url)) == []
    assert time.monotonic() - start >= 2
    assert "429" in caplog.text


@pytest.mark.case("B22")
def test_a_passing_503_on_the_index(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_PAUSE", 0.001)
    server.at, server.faults = INDEX_NAME, ["503", "503"]
    assert verify_shards(ShardCache(str(tmp_path / "cache")).local_folder(server.url)) == []


@pytest.mark.case("B22")
def test_an_endless_manifest(server: _Server, tmp_path: Path) -> None:
    server.endless = True
    with pytest.raises(UserError, match=r"manifest\.json has more than"):
        ShardCache(str(tmp_path / "cache")).local_folder(server.url)


@pytest.mark.case("B28")
def test_a_server_without_ranges(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_CHUNK", 4096)
    ShardCache(str(tmp_path / "cache")).local_folder(server.url)
    tars = [name for name in server.asked if name.endswith(".tar")]
    assert len(tars) == len(set(tars)) > 1
