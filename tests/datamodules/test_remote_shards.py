"""Remote folders over a real HTTP server and a real S3 protocol, with faults."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

import datamodules.shards.remote as remote
import datamodules.shards.remote_files as remote_files
from datamodules.shards.reading import ShardReader
from datamodules.shards.remote import ShardCache
from datamodules.streaming_datamodule import StreamingDataModule
from datamodules.token_datamodule import TokenDataModule
from magnet_train.errors import UserError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve files with byte ranges; `faults` are used up one by one by requests for tars."""

    def do_GET(self) -> None:
        server: Any = self.server
        path = Path(self.translate_path(self.path))
        server.requests.append((self.path, self.headers.get("Range")))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        fault = server.faults.pop(0) if server.faults and path.suffix == ".tar" else None
        if fault == "500":
            self.send_error(500)
            return
        status = 200
        if (wanted := self.headers.get("Range")) and server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            status, data = 206, data[int(first) : int(last) + 1]
        promised = len(data)
        if fault == "dropped":
            data = data[: len(data) // 2]
        elif fault == "truncated":
            data = data[: len(data) // 2]
            promised = len(data)
        elif fault == "garbled":
            data = bytes(len(data))
        self.send_response(status)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = fault == "dropped"

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Files of a folder at `url`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, str | None]] = []
        self.faults: list[str] = []
        self.ranges = True

    def tars(self) -> list[str]:
        return [path for path, _ in self.requests if path.endswith(".tar")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    made = Server(tmp_path / "served")
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote_files, "_PAUSE", 0.001)
    monkeypatch.setattr(remote_files, "_CHUNK", 20_000)  # several to a shard
    yield
    release()


def release() -> None:
    """Let go of the copies in use, as the end of the process would."""
    while remote._in_use:
        remote._in_use.pop().close()


@pytest.fixture
def serve(make_shards: Any) -> Callable[..., Path]:
    """Return a function that makes shards of 2 or 3 tars where the server looks."""
    return lambda name="shards", clips=60: make_shards(
        clips=clips, name=f"served/{name}", frames=200, shard_bytes=60_000
    )


def same(copy: Path, folder: Path) -> bool:
    names = {"manifest.json", "index.npy", *(path.name for path in folder.glob("*.tar"))}
    return {path.name for path in copy.iterdir()} == names and all(
        (copy / name).read_bytes() == (folder / name).read_bytes() for name in names
    )


def test_a_remote_folder_is_copied_once(serve: Any, server: Server, tmp_path: Path) -> None:
    folder = serve()
    cache = ShardCache(str(tmp_path / "cache"))
    copy = cache.local_folder(f"{server.url}/shards/")
    assert same(copy, folder)
    tars = len(server.tars())
    assert tars > 3
    assert cache.local_folder(f"{server.url}/shards") == copy
    assert len(server.tars()) == tars


def test_training_reads_a_remote_folder(serve: Any, server: Server, tmp_path: Path) -> None:
    folder = serve()
    options: dict[str, Any] = {"segment_duration": 1.0, "num_workers": 0}
    cache = ShardCache(str(tmp_path / "cache"))
    batches = []
    for shards in (str(folder), f"{server.url}/shards"):
        data = TokenDataModule(shards, cache=cache, **options)
        data.setup()
        batches.append([batch["key"] for batch in itertools.islice(data.train_dataloader(), 5)])
    assert batches[0] == batches[1]


@pytest.mark.parametrize("fault", ["500", "dropped", "truncated"])
@pytest.mark.parametrize("ranges", [True, False])
def test_faults_are_tried_again(serve: Any, server: Server, tmp_path: Path, fault: str, ranges: bool) -> None:
    folder = serve()
    server.ranges = ranges
    server.faults = [fault, fault]
    assert same(ShardCache(str(tmp_path / "cache")).local_folder(f"{server.url}/shards"), folder)
    assert not server.faults


def test_a_broken_download_goes_on_where_it_was(serve: Any, server: Server, tmp_path: Path) -> None:
    folder = serve()
    cache = ShardCache(str(tmp_path / "cache"))
    server.faults = ["", *["500"] * 5]  # the first piece comes, then nothing
    with pytest.raises(UserError, match=r"shard-000000\.tar cannot be read .*try again"):
        cache.local_folder(f"{server.url}/shards")
    (copy,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert not (copy / "manifest.json").exists()
    server.requests.clear()
    assert same(cache.local_folder(f"{server.url}/shards"), folder)
    assert next(span for path, span in server.requests if path.endswith(".tar")) == "bytes=20000-39999"


def test_damage_on_the_way_is_fetched_again(serve: Any, server: Server, tmp_path: Path) -> None:
    folder = serve()
    server.faults = ["garbled"]
    assert same(ShardCache(str(tmp_path / "cache")).local_folder(f"{server.url}/shards"), folder)


def test_damage_at_the_source_is_refused(serve: Any, server: Server, tmp_path: Path) -> None:
    path = serve() / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    cache = ShardCache(str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"shard-000001\.tar is not the file that its manifest lists"):
        cache.local_folder(f"{server.url}/shards")
    assert not list((tmp_path / "cache").glob("*/*shard-000001*"))


def test_a_damaged_copy_is_mended(serve: Any, server: Server, tmp_path: Path) -> None:
    folder = serve()
    cache = ShardCache(str(tmp_path / "cache"))
    copy = cache.local_folder(f"{server.url}/shards")
    tar = copy / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert same(cache.local_folder(f"{server.url}/shards"), folder)


def test_other_shards_at_the_same_address_are_another_copy(
    serve: Any, server: Server, tmp_path: Path
) -> None:
    first, second = serve("first"), serve("second", clips=30)
    served = tmp_path / "served" / "shards"
    cache = ShardCache(str(tmp_path / "cache"))
    served.symlink_to(first)
    copy = cache.local_folder(f"{server.url}/shards")
    served.unlink()
    served.symlink_to(second)
    other = cache.local_folder(f"{server.url}/shards")
    assert copy != other
    assert same(copy, first)
    assert same(other, second)


def test_the_copy_used_longest_ago_makes_room(serve: Any, server: Server, tmp_path: Path) -> None:
    for name, clips in (("a", 60), ("b", 62), ("c", 64)):
        serve(name, clips)
    size = sum(path.stat().st_size for path in (tmp_path / "served" / "c").iterdir())
    cache = ShardCache(str(tmp_path / "cache"), gigabytes=2.5 * size / 1e9)
    a, b = (cache.local_folder(f"{server.url}/{name}") for name in "ab")
    release()
    assert cache.local_folder(f"{server.url}/a") == a  # now b was used longest ago
    release()
    c = cache.local_folder(f"{server.url}/c")
    assert [path.exists() for path in (a, b, c)] == [True, False, True]


def test_a_copy_in_use_stays(serve: Any, server: Server, tmp_path: Path) -> None:
    serve("a"), serve("b", 62)
    size = sum(path.stat().st_size for path in (tmp_path / "served" / "b").iterdir())
    cache = ShardCache(str(tmp_path / "cache"), gigabytes=1.5 * size / 1e9)
    a = cache.local_folder(f"{server.url}/a")
    with pytest.raises(UserError, match=r"/b takes .*other runs are using the rest .*data\.cache\.gigabytes"):
        cache.local_folder(f"{server.url}/b")
    assert len(ShardReader(a)) == 60


def test_more_than_the_cache_may_hold_is_refused(serve: Any, server: Server, tmp_path: Path) -> None:
    serve()
    with pytest.raises(
        UserError,
        match=r"/shards takes .*more than the cache may hold; raise data\.cache\.gigabytes \(1e-06\)",
    ):
        ShardCache(str(tmp_path / "cache"), gigabytes=1e-6).local_folder(f"{server.url}/shards")
    assert not server.tars()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{server}/nowhere", "does not exist"),
        ("ftp://host/shards", "is none of hf, s3, https"),
        ("http://127.0.0.1:9/shards", "cannot be read"),
    ],
)
def test_what_cannot_be_reached_is_one_sentence(
    server: Server, tmp_path: Path, url: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ShardCache(str(tmp_path / "cache")).local_folder(url.format(server=server.url))


def test_a_pipe_is_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder at pipe:"):
        TokenDataModule(f"pipe:touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()


def test_a_manifest_cannot_name_files_outside(serve: Any, server: Server, tmp_path: Path) -> None:
    path = serve() / "manifest.json"
    record = json.loads(path.read_text())
    record["shards"][0]["file"] = "../evil.tar"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="evil"):
        ShardCache(str(tmp_path / "cache")).local_folder(f"{server.url}/shards")


def _fetch(folder: str, url: str, barrier: Any, answers: Any) -> None:
    barrier.wait()
    answers.put(str(ShardCache(folder).local_folder(url)))


def test_processes_that_ask_at_once_share_one_download(serve: Any, server: Server, tmp_path: Path) -> None:
    folder = serve()
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    arguments = (str(tmp_path / "cache"), f"{server.url}/shards", barrier, answers)
    processes = [context.Process(target=_fetch, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    copies = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(copies) == 1
    assert same(Path(copies.pop()), folder)
    pieces = [request for request in server.requests if request[0].endswith(".tar")]
    assert len(pieces) == len(set(pieces))


def test_s3(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The S3 protocol as moto's server speaks it."""
    folder = serve()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    made = ThreadedMotoServer(port=0)
    made.start()
    try:
        host, port = made.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="music")
        for path in folder.iterdir():
            client.upload_file(str(path), "music", f"tokens/{path.name}")
        cache = ShardCache(str(tmp_path / "cache"))
        assert same(cache.local_folder("s3://music/tokens"), folder)
        with pytest.raises(UserError, match="does not exist"):
            cache.local_folder("s3://music/nothing")
    finally:
        made.stop()


def test_the_default_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ShardCache()._path() == tmp_path / "magnet-train"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ShardCache()._path() == tmp_path / ".cache" / "magnet-train"


def test_streaming_reads_a_remote_folder(serve: Any, server: Server) -> None:
    folder = serve()
    options: dict[str, Any] = {"segment_duration": 1.0, "num_workers": 0, "buffer": 10}
    server.faults = ["500", "dropped", "truncated"]
    keys = [
        [key for batch in itertools.islice(StreamingDataModule(shards, **options).train_dataloader(), 10)
         for key in batch["key"]]
        for shards in (folder, f"{server.url}/shards")
    ]  # fmt: skip
    assert keys[0] == keys[1]
    assert not server.faults
