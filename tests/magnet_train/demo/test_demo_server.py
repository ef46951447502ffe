"""The page answers its own requests alone, and is told in a sentence where it cannot be."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from magnet_train.cli.main import main
from magnet_train.demo.server import Guard, address_of, bind, private_folder
from magnet_train.errors import UserError


async def _inner(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


def ask(path: str = "/", local: bool = True, **headers: str) -> tuple[int, dict[str, str]]:
    """Send a request through the guard; return status and headers."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": raw}
    asyncio.run(Guard(_inner, local, "/tmp/own")(scope, None, send))  # type: ignore[arg-type]
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860"])
def test_own_requests_are_answered_with_a_policy(host: str) -> None:
    status, headers = ask(host=host, origin=f"http://{host}")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "http" not in headers["content-security-policy"]  # no other host is named


def test_other_names_and_pages_are_refused() -> None:
    assert ask(host="evil.example:7860")[0] == 403  # a name that was let point here
    assert ask(host="")[0] == 403
    assert ask(host="127.0.0.1:7860", origin="https://evil.example")[0] == 403
    assert ask(host="127.0.0.1:7860", origin="http://127.0.0.1:1234")[0] == 403
    assert ask(host="127.0.0.1:7860", origin="null")[0] == 403
    assert ask(host="studio.lan:7860", local=False)[0] == 200  # --host 0.0.0.0
    assert ask(host="studio.lan:7860", local=False, origin="https://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/config", 200),
        ("/gradio_api/heartbeat/x1", 200),
        ("/gradio_api/file=/tmp/own/clip.wav", 200),
        ("/gradio_api/file=/tmp/other/clip.wav", 404),
        ("/gradio_api/file=https://example.org/x", 404),  # gradio would fetch it
        ("/gradio_api/file/https://example.org/x", 404),
        ("/gradio_api/proxy=https://example.org/x", 404),
        ("/gradio_api/process_recording", 404),
        ("/gradio_api/runs", 404),
        ("/monitoring", 404),
    ],
)
def test_only_what_the_page_needs(path: str, status: int) -> None:
    assert ask(path, host="127.0.0.1")[0] == status


def test_a_port_that_is_taken() -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert address_of(listening, "127.0.0.1") == f"http://127.0.0.1:{port}"
        assert address_of(listening, "0.0.0.0") == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match="choose another --port"):
            bind("127.0.0.1", port)


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(UserError, match="--host"):
        bind("no such host", 0)
    with pytest.raises(UserError, match="cannot be used"):  # of nobody, RFC 5737
        bind("192.0.2.1", 0)


def test_uploads_have_a_folder_that_goes() -> None:
    before = dict(os.environ)
    with private_folder() as name:
        assert os.environ["GRADIO_TEMP_DIR"] == name
        folder = Path(name)
        assert folder.stat().st_mode & 0o077 == 0
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not folder.exists()
    assert dict(os.environ) == before


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["demo", "--model", "x"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'magnet-train[demo]'" in said
    assert len(said.splitlines()) == 1


def test_the_port_is_tried_before_the_model_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["demo", "--model", "no_model", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --port" in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--model", str(tmp_path / "no_model"), "--port", "0"]) == 1
    assert "no_model" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "music"])
def test_a_port_that_is_none(port: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--model", "x", "--port", port])
    assert stop.value.code == 2
