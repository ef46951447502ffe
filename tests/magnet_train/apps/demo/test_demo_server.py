"""The server refuses all but the page's own requests, and reports a port or host that it cannot use."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from magnet_train.apps.demo.guard import MAX_MESSAGE, MAX_UPLOAD, Guard
from magnet_train.apps.demo.server import free_port, private_folder, read_logins
from magnet_train.cli.main import main
from magnet_train.errors import UserError


async def _inner(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


def ask(
    path: str = "/", at: str = "127.0.0.1", method: str = "GET", folder: str = "/tmp/own", **headers: str
) -> tuple[int, dict[str, str]]:
    """Send a request through the guard; return status and headers."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Guard(_inner, at, Path(folder))(scope, None, send))  # type: ignore[arg-type]
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860"])
def test_requests_of_the_page_get_a_content_policy(host: str) -> None:
    status, headers = ask(host=host, origin=f"http://{host}")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "http" not in headers["content-security-policy"]  # it names no other host


def test_foreign_hosts_and_origins_are_refused() -> None:
    assert ask(host="evil.example:7860")[0] == 403  # a name that resolves to this machine
    assert ask(host="")[0] == 403
    assert ask(host="[")[0] == 403
    assert ask(host="127.0.0.1:7860", origin="https://evil.example")[0] == 403
    assert ask(host="127.0.0.1:7860", origin="http://127.0.0.1:1234")[0] == 403
    assert ask(host="127.0.0.1:7860", origin="http://[")[0] == 403
    assert ask(host="127.0.0.1:7860", origin="null")[0] == 403
    assert ask(host="studio.lan:7860", at="0.0.0.0")[0] == 200  # --host 0.0.0.0
    assert ask(host="studio.lan:7860", at="0.0.0.0", origin="https://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/config", 200),
        ("/gradio_api/heartbeat/x1", 200),
        ("/gradio_api/file=/tmp/own/clip.wav", 200),
        ("/gradio_api/file=/tmp/other/clip.wav", 404),
        ("/gradio_api/file=https://example.org/x", 404),  # gradio would fetch this URL
        ("/gradio_api/file/https://example.org/x", 404),
        ("/gradio_api/proxy=https://example.org/x", 404),
        ("/gradio_api/process_recording", 404),
        ("/gradio_api/deep_link", 404),
        ("/gradio_api/component_server", 404),
        ("/gradio_api/call/generate", 404),
        ("/gradio_api/runs", 404),
        ("/monitoring", 404),
    ],
)
def test_only_the_paths_of_the_page(path: str, status: int) -> None:
    assert ask(path, host="127.0.0.1")[0] == status


def test_messages_have_a_content_length_and_a_limit() -> None:
    join, upload = "/gradio_api/queue/join", "/gradio_api/upload"
    assert ask(join, method="POST", host="127.0.0.1")[0] == 411
    for length, status in (
        (str(MAX_MESSAGE), 200),
        (str(MAX_MESSAGE + 1), 413),
        ("-1", 411),
        ("9" * 5000, 413),
    ):
        assert ask(join, method="POST", host="127.0.0.1", content_length=length)[0] == status
    assert (
        ask(upload, method="POST", folder="/", host="127.0.0.1", content_length=str(MAX_UPLOAD + 1))[0] == 413
    )


def test_uploads_leave_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    for free, status in ((2**30 + 2**20, 200), (2**30, 507)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(2**40, 0, free))
        answer = ask(
            "/gradio_api/upload", method="POST", folder=str(tmp_path), host="127.0.0.1", content_length="1000"
        )
        assert answer[0] == status


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="choose another --port"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    assert free_port("127.0.0.1", 0) > 0


def test_an_unknown_host() -> None:
    with pytest.raises(UserError, match="--host"):
        free_port("no such host", 0)
    with pytest.raises(UserError, match="cannot be used"):  # reserved for documentation, RFC 5737
        free_port("192.0.2.1", 0)


def test_the_folder_of_uploads_is_private_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setenv("no_proxy", "example.org")
    before = dict(os.environ)
    with private_folder("127.0.0.1") as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert folder.stat().st_mode & 0o077 == 0
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert "GRADIO_SHARE" not in os.environ
        assert "GRADIO_ALLOWED_PATHS" not in os.environ
        assert os.environ["no_proxy"] == "example.org,localhost,127.0.0.1"
    assert not folder.exists()
    assert dict(os.environ) == before


def test_logins(tmp_path: Path) -> None:
    file = tmp_path / "logins"
    file.write_text("\ufeffann:a:b\r\n\r\nbob:c\r\n", encoding="utf-8")
    assert read_logins(file) == [("ann", "a:b"), ("bob", "c")]
    assert read_logins(None) is None
    for wrong in ("", "ann", "ann:", ":a", "ann:a\nbob"):
        file.write_text(wrong)
        with pytest.raises(UserError, match="NAME:PASSWORD"):
            read_logins(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        read_logins(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_logins(tmp_path / "absent")


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["demo", "--model", "x"]) == 1
    error = capsys.readouterr().err
    assert 'pip install "magnet-train[demo]"' in error
    assert len(error.splitlines()) == 1


def test_the_port_is_checked_before_the_model_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["demo", "--model", "no_model", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --port" in capsys.readouterr().err


def test_a_missing_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--model", str(tmp_path / "no_model"), "--port", "0"]) == 1
    assert "no_model" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "music"])
def test_an_invalid_port(port: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--model", "x", "--port", port])
    assert stop.value.code == 2
