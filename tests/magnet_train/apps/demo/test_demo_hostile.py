"""Hostile clients of a running `magnet-train demo`: they get no file, cause no hang, and others are still served."""

from __future__ import annotations

import http.server
import io
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from visitor import Visitor

from magnet_train.apps.demo.guard import MAX_FILE
from magnet_train.apps.demo.server import MAX_QUEUE

pytestmark = pytest.mark.slow

SECRET = b"RIFF of somebody else"
CLIP = re.compile(r"/[^\"\s]*?/clip_\d+_\d+\.wav")


@pytest.fixture
def visitor(demo: Any) -> Iterator[Visitor]:
    """A new client; afterwards another one is served, and the terminal shows no traceback."""
    yield Visitor(demo.url)
    assert "state done" in Visitor(demo.url).ask(text="a flute")
    assert "Traceback" not in demo.output


def tone(seconds: float = 1.0, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(int(seconds * rate)) / 5), rate, format="WAV")
    return file.getvalue()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A recording that no visitor uploaded."""
    path = tmp_path / "secret.wav"
    path.write_bytes(tone(0.3))
    return path


def clip_of(answer: str) -> str:
    found = CLIP.search(answer)
    assert found is not None, answer[-2000:]
    return found[0]


def edit(visitor: Visitor, reference: Any) -> str:
    return visitor.ask(task="Change a part", recording=reference, start=0.05, end=0.15)


def copies_of(demo: Any, content: bytes) -> list[Path]:
    return [
        file
        for file in demo.temporary.rglob("*")
        if file.is_file() and not file.is_symlink() and file.read_bytes() == content
    ]


def test_files_that_were_not_uploaded(visitor: Visitor, demo: Any, secret: Path, checkpoint: Path) -> None:
    own = next(demo.temporary.glob("magnet-train-demo-*"))
    link = own / "link.wav"
    link.symlink_to(secret)
    relative = os.path.relpath(secret, Path(__file__).parents[4])
    for path in (
        secret,
        relative,
        f"{own}/../../../../../../../../../../..{secret}",
        f"{own}/x/../../{secret.name}",
        link,
        f"file://{secret}",
        f"file:{secret}",
        "/etc/passwd",
        "/proc/self/environ",
        checkpoint,
        own,
        own.parent,
        "",
        ".",
        "\0",
        "x" * 5000,
        "~/.bashrc",
        "\\\\server\\share\\a.wav",
    ):
        for more in ({}, {"is_stream": True}, {"url": f"/gradio_api/file={path}"}):
            answer = edit(visitor, visitor.recording(path, **more))
            assert "state done" not in answer, path
            assert "root:" not in answer
            assert "not an upload of this page" in answer or "cannot be read" in answer, answer[-500:]
    link.unlink()
    assert not copies_of(demo, secret.read_bytes())
    assert not copies_of(demo, Path("/etc/passwd").read_bytes())


def test_a_file_in_any_other_field(visitor: Visitor, demo: Any, secret: Path) -> None:
    reference = visitor.recording(secret)
    for name in visitor.form:
        for value in (reference, [reference], {"value": reference}, {"a": [{"b": reference}]}):
            visitor.ask(**{name: value})
    assert not copies_of(demo, secret.read_bytes())
    # Nor as a recording without the metadata of a file, or nested in one.
    for value in (
        {"path": str(secret)},
        {"path": {"path": str(secret)}},
        [str(secret)],
        str(secret),
        7,
        True,
    ):
        answer = edit(visitor, value)
        assert "state done" not in answer
    assert not copies_of(demo, secret.read_bytes())


def test_no_address_is_fetched(visitor: Visitor) -> None:
    fetched: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815  as http.server names it

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        for name in ("127.0.0.1", "localhost", "[::1]", "0x7f000001", "2130706433", "127.1"):
            address = f"http://{name}:{listener.server_port}/a.wav"
            for path in (
                address,
                address.replace("http", "HTTP"),
                f"https{address[4:]}",
                f"ftp{address[4:]}",
            ):
                reference = visitor.recording(path, url=path)
                assert "not an upload of this page" in edit(visitor, reference)
                visitor.ask(text=reference)
            for route in ("file=", "proxy=", "file/"):
                assert visitor.get(f"/gradio_api/{route}{address}")[0] == 404
        listener.shutdown()
    assert not fetched
    # Nor a public address, which gradio's own protection lets through.
    began = time.monotonic()
    assert "not an upload of this page" in edit(visitor, visitor.recording("https://example.org/a.wav"))
    assert time.monotonic() - began < 20


def test_devices_and_pipes(visitor: Visitor, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    for path in ("/dev/zero", "/dev/random", "/dev/stdin", "/dev/tty", "/proc/self/fd/0", "/proc/kmsg", pipe):
        assert "not an upload of this page" in edit(visitor, visitor.recording(path)), path
        assert visitor.get(f"/gradio_api/file={path}")[0] in (403, 404)


def test_texts_and_numbers_without_bound(visitor: Visitor) -> None:
    assert visitor.join(text="x" * 20_000_000)[0] == 413
    assert "at most 1000 characters" in visitor.ask(text="x" * 100_000)
    for wrong in (
        {"seconds": 1e9},
        {"seconds": -1},
        {"seconds": 0.49},
        {"clips": 5},
        {"clips": 0},
        {"clips": 1e18},
        {"clips": 1.5},
        {"seed": -1},
        {"seed": 2**53},
        {"seed": 10**4000},
        {"seed": 0.5},
        {"steps": "501, 1, 1, 1"},
        {"steps": "9" * 100_000},
        {"steps": "1"},
        {"temperature": -1},
        {"temperature": 1e9},
        {"top_p": 2},
        {"guidance": 1e30},
        {"last_guidance": -1e30},
        {"task": "Rocket"},
        {"task": None},
        {"task": ["Loop"]},
        {"text": "x\ud800y"},
    ):
        answer = visitor.ask(**wrong)
        assert "state done" not in answer, wrong
        assert "state failed" in answer or '"success": false' in answer, (wrong, answer[-500:])
    for name in set(visitor.form) - {"takes"}:
        for value in (float("nan"), float("inf"), -float("inf"), {}, [], [1], {"x": 1}, "x", True):
            answer = visitor.ask(**{name: value})
            assert re.search(r'state (done|failed)|"success": false', answer), (name, value, answer[-300:])
    for value in (b"1e400", b"-1e400", b"1" * 5000, b"NaN", b"[" * 50_000, b"[" * 900 + b"]" * 900):
        status, _ = visitor.post("/gradio_api/queue/join", visitor.body_with_seed(value))
        assert status < 600
        if status == 200:
            assert "state done" not in str(visitor.listen())


def test_messages_that_are_not_forms(visitor: Visitor) -> None:
    for message in (
        {},
        [],
        None,
        {"data": [], "fn_index": visitor.function["id"], "session_hash": "x"},
        {"data": [1] * 1000, "fn_index": visitor.function["id"], "session_hash": "x"},
        {"data": "x", "fn_index": visitor.function["id"], "session_hash": "x"},
        {"data": [], "fn_index": 0, "session_hash": {"x": 1}},
    ):
        assert visitor.post("/gradio_api/queue/join", message)[0] < 600
    assert visitor.post("/gradio_api/queue/join", b"\xff\xfe{")[0] in (400, 422)
    status, _, _ = visitor.request("POST", "/gradio_api/queue/join", None, **{"Transfer-Encoding": "chunked"})
    assert status in (400, 411)
    for name in ("generate", "predict", "make"):  # bypassing the queue
        message = {"data": list(visitor.form.values()), "session_hash": visitor.session}
        assert visitor.post(f"/gradio_api/run/{name}", message)[0] in (400, 404, 422)
        assert visitor.post(f"/gradio_api/call/{name}", message)[0] == 404


def test_uploads_too_large_and_by_the_thousand(visitor: Visitor, demo: Any) -> None:
    assert visitor.upload("a.wav", bytes(MAX_FILE + 2 * 2**20))[0] == 413
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    many = b"".join(head + str(number).encode() + b"\r\n" for number in range(1200)) + b"--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert visitor.request("POST", "/gradio_api/upload", many, **kind)[0] == 400
    for number in range(300):
        assert visitor.upload("a.wav", str(number).encode())[0] == 200
    assert not [file for file in demo.temporary.rglob("*") if file.is_file() and file.stat().st_size > 10**8]
    for name in ("../../a.wav", "/etc/a.wav", "a/../../b.wav", "..", ".", "", "x" * 1000 + ".wav", "a\0.wav"):
        status, path = visitor.upload(name, b"climbing")
        if status == 200:
            assert Path(path).resolve().is_relative_to(demo.temporary.resolve())
    assert not Path("/etc/a.wav").exists()


def test_audio_with_false_headers(visitor: Visitor) -> None:
    sound = tone()
    files = {
        "fast.wav": sound[:24] + struct.pack("<II", 2_000_000_000, 4_000_000_000) + sound[32:],
        "slow.wav": sound[:24] + struct.pack("<II", 0, 0) + sound[32:],
        "channels.wav": sound[:22] + struct.pack("<H", 65535) + sound[24:],
        "endless.wav": sound[:40] + struct.pack("<I", 2**32 - 1) + sound[44:],
        "empty.wav": sound[:40] + struct.pack("<I", 0),
        "cut.wav": sound[:30],
        "nothing.wav": b"",
        "page.mp3": b"<html><script>alert(1)</script></html>",
        "flac.flac": b"fLaC\0\0\0\x22" + b"\xff" * 34,
        "long.wav": tone(601, 1000),
    }
    for name, content in files.items():
        status, path = visitor.upload(name, content)
        assert status == 200
        began = time.monotonic()
        answer = edit(visitor, visitor.recording(path))
        assert re.search("state (done|failed)", answer), (name, answer[-500:])
        assert "Internal error" not in answer, (name, answer[-500:])
        if name != "endless.wav":
            assert "state failed" in answer, name
        assert time.monotonic() - began < 60
    status, page = visitor.upload("page.html", b"<script>alert(document.domain)</script>")
    assert status == 200
    _, _, headers = visitor.request("GET", f"/gradio_api/file={page}")
    assert headers["content-disposition"].startswith("attachment")


def test_a_second_visitor_sees_nothing_of_the_first(visitor: Visitor, demo: Any) -> None:
    first = Visitor(demo.url)
    clip = clip_of(first.ask(text="a secret song", seed=77))
    assert first.get(f"/gradio_api/file={clip}")[0] == 200
    # The folder's name is random: with 32 hex digits, nothing short of the whole path helps.
    folder = Path(clip).parent
    assert len(folder.name) == 32
    for path in (
        folder,
        folder.parent,
        f"{folder.parent}/{'0' * 32}/{Path(clip).name}",
        f"{folder}/",
        f"{folder}/*",
    ):
        assert visitor.get(f"/gradio_api/file={path}")[0] in (403, 404), path
        assert "state done" not in edit(visitor, visitor.recording(path))
    for session in (
        "",
        "*",
        "%",
        "..",
        "0",
        "null",
        "undefined",
        first.session[:-1],
        first.session.upper() + " ",
    ):
        guessing = Visitor(demo.url, session)
        assert "secret song" not in str(guessing.listen())
        answer = guessing.ask(text="a bell") if session else ""
        assert clip not in answer
        assert "secret song" not in answer
    for path in ("/config", "/", "/gradio_api/info", f"/?session_hash={first.session}"):
        assert b"secret song" not in visitor.get(path)[1]
        assert clip.encode() not in visitor.get(path)[1]
    assert visitor.get(f"/gradio_api/deep_link?session_hash={first.session}")[0] == 404
    assert visitor.post("/gradio_api/component_server", {"session_hash": first.session})[0] == 404


def test_foreign_hosts_and_origins(visitor: Visitor) -> None:
    for host in (
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "",
        "[",
        "localhost.evil.example",
    ):
        status, _, _ = visitor.request("GET", "/config", Host=host)
        assert status in (400, 403), host
    for origin in (
        "https://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://[",
        f"https://x@{visitor.address}",
    ):
        message = {"data": list(visitor.form.values()), "fn_index": 0, "session_hash": "x"}
        assert visitor.post("/gradio_api/queue/join", message, Origin=origin)[0] == 403, origin
        status, _, headers = visitor.request("GET", "/config", Origin=origin)
        assert status == 403
        if "127.0.0.1" not in origin:  # gradio's own rule ignores the port
            assert "access-control-allow-origin" not in headers
    _, _, headers = visitor.request("GET", "/")
    assert "default-src 'self'" in headers["content-security-policy"]
    for path in (
        "/monitoring",
        "/gradio_api/runs",
        "/gradio_api/process_recording",
        "/docs",
        "/gradio_api/vibe-code",
    ):
        assert visitor.get(path)[0] == 404, path


def test_a_flood(visitor: Visitor, demo: Any) -> None:
    crowd = [Visitor(demo.url) for _ in range(3)]
    statuses = [
        crowd[number % 3].join(steps="200, 200, 200, 200", clips=4)[0] for number in range(2 * MAX_QUEUE)
    ]
    assert statuses[0] == 200
    assert 503 in statuses
    assert statuses.count(200) <= MAX_QUEUE + 2
    assert visitor.get("/")[0] == 200  # others can still read the page
    status, answer = visitor.join()
    assert status == 503
    assert b"Queue is full" in answer
    # Leaving frees a visitor's places in the queue; a browser leaves by ending its heartbeat.
    for one in crowd:
        one.leave()


def test_climbing_paths(visitor: Visitor, demo: Any) -> None:
    own = next(demo.temporary.glob("magnet-train-demo-*"))
    for path in ("/etc/passwd", str(Path(__file__)), "pyproject.toml", "../README.md", "/proc/self/environ",
                 f"{own}/../../../../../../etc/passwd", f"{own}/..%2f..%2foutput.txt",
                 f"{own}/%2e%2e/%2e%2e/output.txt", f"{own}\\..\\..\\output.txt"):  # fmt: skip
        assert visitor.get(f"/gradio_api/file={path}")[0] in (403, 404), path
    link = own / "link"
    link.symlink_to("/etc/passwd")
    assert visitor.get(f"/gradio_api/file={link}")[0] in (403, 404)
    link.unlink()
    for path in (
        "/static/../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/package.json",
        "/svelte/../x",
    ):
        assert visitor.get(path)[0] in (403, 404), path


def test_a_login(start_demo: Callable[..., Any], tmp_path: Path) -> None:
    logins = tmp_path / "logins"
    logins.write_text("ann:pass:word\nbob:other\n")
    demo = start_demo("--auth", str(logins))
    with pytest.raises(KeyError):
        Visitor(demo.url)  # the configuration is not served
    stranger = Visitor.__new__(Visitor)
    stranger.address, stranger.headers, stranger.session = demo.url.partition("//")[2], {}, "x"
    for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
        assert stranger.get(path)[0] == 401
    assert stranger.upload("a.wav", tone())[0] == 401
    assert stranger.post("/gradio_api/queue/join", {"data": [], "fn_index": 0, "session_hash": "x"})[0] == 401
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert stranger.request("POST", "/login", b"username=ann&password=wrong", **form)[0] == 400
    status, _, headers = stranger.request("POST", "/login", b"username=ann&password=pass:word", **form)
    assert status == 200
    ann = Visitor(demo.url, Cookie=headers["set-cookie"].partition(";")[0])
    assert "state done" in ann.ask()
