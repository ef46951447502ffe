"""Servers on the loopback that say nothing, trickle, never end, know no ranges or ask to wait."""

from __future__ import annotations

import email.utils
import http.server
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import datamodules.shards.remote as remote
import datamodules.shards.remote_files as remote_files
from datamodules.shards.manifest import read_manifest
from datamodules.shards.remote import ShardCache
from magnet_train.errors import UserError

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer a request with the next fault for its file, and with the file once they are used up."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        name = self.path.rpartition("/")[2]
        server.requests.append(name)
        faults: list[Answer] = server.faults.get(name, [])
        if faults:
            (faults[0] if len(faults) == 1 and server.for_ever else faults.pop(0))(self)
            return
        self.give((server.folder / name).read_bytes())

    def give(self, data: bytes) -> None:
        """Send the whole file: no ranges here."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Files of `folder` at `url`, with `faults` by file name."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/shards"
        self.folder = folder
        self.requests: list[str] = []
        self.faults: dict[str, list[Answer]] = {}
        self.for_ever = False
        self.over = threading.Event()

    def handle_error(self, *_: Any) -> None:
        pass  # the client hangs up on purpose


@pytest.fixture
def server(make_shards: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_files, "_PAUSE", 0.001)
    made = Server(make_shards(clips=60, frames=200, shard_bytes=60_000))
    thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()
    thread.join()
    while remote._in_use:
        remote._in_use.pop().close()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[[], Path]:
    return lambda: ShardCache(str(tmp_path / "cache")).local_folder(server.url)


def silent(handler: Handler) -> None:
    server: Any = handler.server
    server.over.wait(60)


def trickling(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    server: Any = handler.server
    while not server.over.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def trickling_headers(handler: Handler) -> None:
    server: Any = handler.server
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not server.over.wait(0.05):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:  # until the client hangs up
        handler.wfile.write(b'{"a": 1,' * 8192)


def asks(status: int, wait: str) -> Answer:
    return lambda handler: handler.refuse(status, Retry_After=wait)


@pytest.mark.parametrize("name", ["manifest.json", "index.npy", "shard-000001.tar"])
@pytest.mark.parametrize("fault", [silent, trickling, trickling_headers])
def test_a_server_without_an_answer_is_given_up(
    server: Server,
    fetch: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    fault: Answer,
) -> None:
    monkeypatch.setattr(remote_files, "_SILENCE", 0.5)
    monkeypatch.setattr(remote_files, "_TRICKLE", (0.6, 2**16))
    monkeypatch.setattr(remote_files, "_ATTEMPTS", 2)
    server.faults[name], server.for_ever = [fault], True
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UserError, match=rf"{name} cannot be read \(") as caught,
    ):
        fetch()
    assert "no answer for" in str(caught.value) or "bytes in" in str(caught.value)
    assert [record.getMessage() for record in caplog.records if "attempt 2 of 2" in record.getMessage()]


def test_five_silent_attempts_take_less_than_a_minute() -> None:
    pauses = sum(remote_files._PAUSE * 2**number for number in range(remote_files._ATTEMPTS - 1))
    assert remote_files._ATTEMPTS * remote_files._SILENCE + pauses < 60
    assert remote_files._TRICKLE[0] < 60


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_kept(
    server: Server, fetch: Callable[[], Path], caplog: pytest.LogCaptureFixture, status: int, as_date: bool
) -> None:
    # a date has whole seconds, so that of 3 s from now may be 2 s away
    wait = email.utils.formatdate(time.time() + 3, usegmt=True) if as_date else "2"
    server.faults["manifest.json"] = [asks(status, wait)]
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert read_manifest(fetch()).samples == 60
    assert time.monotonic() - start > 1.5
    assert f"{status}" in caplog.text
    assert "attempt 2 of 5" in caplog.text


@pytest.mark.parametrize("wait", ["86400", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_long_retry_after_is_reported_at_once(server: Server, fetch: Callable[[], Path], wait: str) -> None:
    server.faults["manifest.json"], server.for_ever = [asks(429, wait)], True
    with pytest.raises(UserError, match=r"manifest\.json .*the server asks to wait \d+ s; try again then"):
        fetch()
    assert len(server.requests) == 1


@pytest.mark.parametrize("wait", ["", "soon", "-5", "1e9", "\x1b", "Mon, 99 Foo 2026", "0"])
def test_an_odd_retry_after_is_passed_over(server: Server, fetch: Callable[[], Path], wait: str) -> None:
    server.faults["index.npy"] = [asks(503, wait)]
    assert read_manifest(fetch()).samples == 60


@pytest.mark.parametrize("name", ["manifest.json", "index.npy", "shard-000000.tar"])
def test_a_passing_503_is_tried_again(server: Server, fetch: Callable[[], Path], name: str) -> None:
    server.faults[name] = [lambda handler: handler.refuse(503)] * 2
    copy = fetch()
    assert (copy / name).read_bytes() == (server.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "does not exist"), (403, "may not read"), (401, "may not read"), (400, "400")],
)
def test_a_refusal_is_not_tried_again(
    server: Server, fetch: Callable[[], Path], status: int, message: str
) -> None:
    server.faults["index.npy"], server.for_ever = [lambda handler: handler.refuse(status)], True
    with pytest.raises(UserError, match=message):
        fetch()
    assert server.requests.count("index.npy") == 1


def test_an_endless_manifest_is_refused(server: Server, fetch: Callable[[], Path]) -> None:
    server.faults["manifest.json"] = [endless]
    with pytest.raises(UserError, match=r"manifest\.json has more than 33554432 bytes"):
        fetch()


def test_an_endless_index_is_refused(server: Server, fetch: Callable[[], Path]) -> None:
    server.faults["index.npy"], server.for_ever = [endless], True
    with pytest.raises(UserError, match=r"index\.npy is larger than"):
        fetch()


def test_an_endless_shard_is_cut_at_its_size(
    server: Server, fetch: Callable[[], Path], tmp_path: Path
) -> None:
    server.faults["shard-000000.tar"], server.for_ever = [endless], True
    with pytest.raises(UserError, match=r"shard-000000\.tar is not the file that its manifest lists"):
        fetch()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.partial")) == 0


def test_a_server_without_ranges_sends_each_file_once(
    server: Server, fetch: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "_CHUNK", 5000)  # twelve to a shard
    copy = fetch()
    tars = [name for name in server.requests if name.endswith(".tar")]
    assert len(tars) == len(set(tars)) == len(read_manifest(copy).shards) > 1


def test_a_broken_download_without_ranges_goes_on(
    server: Server, fetch: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "_CHUNK", 5000)

    def half(handler: Handler) -> None:
        data = (server.folder / "shard-000001.tar").read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    server.faults["shard-000001.tar"] = [half, half]
    copy = fetch()
    assert (copy / "shard-000001.tar").read_bytes() == (server.folder / "shard-000001.tar").read_bytes()


def test_a_silent_s3_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote_files, "_PAUSE", 0.001)
    monkeypatch.setattr(remote_files, "_SILENCE", 0.5)
    monkeypatch.setattr(remote_files, "_ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        start = time.monotonic()
        with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
            ShardCache(str(tmp_path / "cache")).local_folder("s3://bucket/shards")
        assert time.monotonic() - start < 30  # 1 s of silence and the start of the library
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_a_silent_hub_is_given_up(tmp_path: Path) -> None:
    """In a process of its own: the hub's library reads its address and its patience once, when it is imported."""
    code = (
        "import datamodules.shards.remote_files as files; from datamodules.shards.remote import ShardCache; "
        "files._PAUSE, files._ATTEMPTS = 0.001, 2; ShardCache(%r).local_folder('hf://datasets/someone/shards')"
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hub = f"http://127.0.0.1:{listening.getsockname()[1]}"
        patience = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": hub,
            "HF_HUB_ETAG_TIMEOUT": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", code % str(tmp_path / "cache")],
            env=os.environ | patience | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (
        "UserError: hf://datasets/someone/shards/manifest.json cannot be read (ReadTimeout: timed out)"
        in done.stderr
    )
    assert "attempt 2 of 2" in done.stderr
