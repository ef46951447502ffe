"""A real `magnet-train demo`, asked over HTTP: the command line's sound, no file of others, an orderly end."""

from __future__ import annotations

import shlex
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file

from magnet_train.cli.main import main

pytestmark = pytest.mark.slow

PLACES = range(3, 15, 3)  # of the clips in what the page answers, after seed, status and kept part


def client(url: str, folder: Path) -> Client:
    return Client(url, verbose=False, analytics_enabled=False, download_files=str(folder))


def ask(client: Client, kind: str = "New clip", recording: Path | None = None, **changes: Any) -> Any:
    """Fill in the form and send it."""
    form = {
        "kind": kind,
        "text": "a flute",
        "seconds": 0.48,
        "clips": 1,
        "seed": 5,
        "surprise": False,
        "recording": None if recording is None else handle_file(str(recording)),
        "kept_seconds": 0.2,
        "which": "the last",
        "start": 0.5,
        "end": 0.7,
        "steps": "3, 2, 2, 2",
        "temperature": 3.0,
        "top_p": 0.9,
        "guidance": 3.0,
        "last_guidance": 1.0,
    }
    return client.submit(*(form | changes).values(), api_name="/generate")


def settings_of(answer: tuple[Any, ...], place: int) -> str:
    return str(answer[place + 2])


def file_of(part: Any) -> Path:
    return Path(part["value"] if isinstance(part, dict) else part)


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_sounds_as_the_command_line(
    demo: Any, tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = client(demo.url, tmp_path / "downloads")
    for kind, file in (("New clip", None), ("Change a part", recording), ("Continue a recording", recording)):
        updates = list(ask(asked, kind, file))
        answer = updates[-1]
        assert "state done" in str(answer[1]), answer
        sent = [update for update in updates if "magnet-train generate" in settings_of(update, 3)]
        words = shlex.split(settings_of(sent[0], 3), comments=True)[1:]
        kept = [file_of(update[2]) for update in updates if kind.startswith("Cont") and _has_file(update[2])]
        for place in kept:
            (tmp_path / place.name).write_bytes(place.read_bytes())
        words[-1] = f"again_{kind.split()[0]}"
        # The server keeps an uploaded file's name but for blanks and the like.
        words = [
            str(recording) if kind == "Change a part" and word.endswith("song.wav") else word
            for word in words
        ]
        assert main(words) == 0
        again = next((tmp_path / words[-1]).glob("*.wav"))
        assert again.read_bytes() == file_of(sent[0][3]).read_bytes()


def _has_file(part: Any) -> bool:
    return bool(part["value"] if isinstance(part, dict) and "value" in part else isinstance(part, str))


def test_a_mistake_is_a_message_and_the_server_lives(demo: Any, tmp_path: Path) -> None:
    asked = client(demo.url, tmp_path)
    no_audio = tmp_path / "words.wav"
    no_audio.write_text("no sound")
    assert "one for each codebook" in str(ask(asked, steps="1").result(30))
    assert "as audio" in str(ask(asked, "Change a part", no_audio).result(30))
    assert "state done" in str(ask(asked).result(60))
    assert "Traceback" not in demo.output


def test_no_file_but_its_own_is_served(demo: Any) -> None:
    for path in (
        "/etc/passwd",
        str(Path(__file__)),
        "pyproject.toml",
        "README.md",
        "../README.md",
        "/proc/self/environ",
    ):
        assert status_of(f"{demo.url}/gradio_api/file={path}") in (403, 404), path
    own = next(demo.temporary.glob("magnet-train-demo-*"))
    assert status_of(f"{demo.url}/gradio_api/file={own}/../../../../../../etc/passwd") in (403, 404)
    assert status_of(f"{demo.url}/gradio_api/file={own}/..%2f..%2foutput.txt") in (403, 404)
    (own / "link").symlink_to("/etc/passwd")
    assert status_of(f"{demo.url}/gradio_api/file={own}/link") in (403, 404)
    assert status_of(f"{demo.url}/gradio_api/file=https://example.org/") == 404
    assert status_of(demo.url) == 200
    assert status_of(demo.url, Host="evil.example") == 403
    with urllib.request.urlopen(demo.url) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_an_upload_has_a_largest_size(demo: Any) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    body = head + bytes(101 * 1024 * 1024) + b"\r\n--x--\r\n"
    request = urllib.request.Request(
        f"{demo.url}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises((urllib.error.HTTPError, urllib.error.URLError, ConnectionError)) as refused:
        urllib.request.urlopen(request)
    if isinstance(refused.value, urllib.error.HTTPError):
        assert refused.value.code == 413
    assert not [file for file in demo.temporary.rglob("*") if file.is_file() and file.stat().st_size > 10**8]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_in_the_middle_of_a_job(
    start_demo: Callable[..., Any], tmp_path: Path, number: int, status: int
) -> None:
    demo = start_demo()

    def ask_and_be_left_alone() -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011  whatever a client says of a server that has gone
            ask(client(demo.url, tmp_path), steps="500, 500, 500, 500", clips=4).result()

    asking = threading.Thread(target=ask_and_be_left_alone, daemon=True)
    asking.start()
    deadline = time.monotonic() + 30
    while not list(demo.temporary.glob("magnet-train-job-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    began = time.monotonic()
    assert demo.stop(number) == status
    assert time.monotonic() - began < 10
    assert "Traceback" not in demo.output
    assert not list(demo.temporary.glob("magnet-train-*"))
