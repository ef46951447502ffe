"""A running `magnet-train demo` over HTTP: the command line's audio, errors in one sentence, an orderly exit."""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from visitor import Visitor

from magnet_train.cli.main import main

pytestmark = pytest.mark.slow


def strings_of(answer: Any) -> list[str]:
    """List all strings in an answer of the page."""
    if isinstance(answer, dict):
        return [text for part in answer.values() for text in strings_of(part)]
    if isinstance(answer, list):
        return [text for part in answer for text in strings_of(part)]
    return [answer] if isinstance(answer, str) else []


@pytest.mark.parametrize("task", ["New clip", "Change a part", "Continue a recording", "Loop"])
def test_the_page_makes_the_same_clips_as_the_command_line(
    demo: Any, tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.chdir(tmp_path)
    visitor = Visitor(demo.url)
    status, uploaded = visitor.upload(recording.name, recording.read_bytes())
    assert status == 200
    (tmp_path / Path(uploaded).name).write_bytes(recording.read_bytes())  # gradio's name for it
    reference = visitor.recording(uploaded)
    answer = json.loads(
        visitor.ask(
            task=task,
            text="a flute",
            recording=reference,
            start=0.5,
            end=0.7,
            kept_seconds=0.2,
            seed=5,
            clips=2,
        )
    )
    texts = strings_of(answer)
    assert any("state done" in text for text in texts), texts[-3:]
    commands = sorted({text for text in texts if text.startswith("magnet-train generate")})
    assert len(commands) == 2
    for kept in {text for text in texts if text.startswith("/") and text.endswith("_s.wav")}:
        (tmp_path / Path(kept).name).write_bytes(Path(kept).read_bytes())
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        assert main(words) == 0
        again = next((tmp_path / words[-1]).glob("*.wav"))
        made = next(text for text in texts if text.startswith("/") and text.endswith(f"/{words[-1]}.wav"))
        status, sound = visitor.get(f"/gradio_api/file={made}")
        assert status == 200
        assert again.read_bytes() == sound


def test_errors_are_messages_and_the_server_goes_on(demo: Any) -> None:
    visitor = Visitor(demo.url)
    _, words = visitor.upload("words.wav", b"no sound")
    assert "one for each codebook" in visitor.ask(steps="1")
    assert "as audio" in visitor.ask(task="Change a part", recording=visitor.recording(words))
    assert "There is no recording yet" in visitor.ask(task="Change a part", recording=None)
    assert "state done" in visitor.ask()
    assert "Traceback" not in demo.output


def test_earlier_clips_stay(demo: Any) -> None:
    visitor = Visitor(demo.url)
    visitor.ask(seed=41)
    answer = visitor.ask(seed=42)
    assert "New clip, seed 41" in answer
    assert re.search(r"gradio_api/file=\S+/clip_41_0\.wav", answer)


def test_progress_and_the_place_in_the_queue_are_reported(demo: Any) -> None:
    first, second = Visitor(demo.url), Visitor(demo.url)
    assert first.join(steps="60, 60, 60, 60", clips=2)[0] == 200
    assert second.join()[0] == 200
    messages = second.listen()
    ranks = [message["rank"] for message in messages if message["msg"] == "estimation"]
    assert ranks[0] in (0, 1)
    messages_of_first = json.dumps(first.listen())
    assert "Clip 1 of 2, about " in messages_of_first
    assert "state done" in messages_of_first


def test_cancel_makes_room(demo: Any) -> None:
    visitor = Visitor(demo.url)
    assert visitor.join(steps="500, 500, 500, 500", clips=4)[0] == 200
    time.sleep(1)
    visitor.cancel()
    assert "Cancelled." in json.dumps(visitor.listen())
    assert "state done" in Visitor(demo.url).ask()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_within_a_clip(start_demo: Callable[..., Any], number: int, status: int) -> None:
    demo = start_demo()
    visitor = Visitor(demo.url)
    assert visitor.join(steps="500, 500, 500, 500", clips=4)[0] == 200
    listening = urllib.request.urlopen(f"{demo.url}/gradio_api/queue/data?session_hash={visitor.session}")
    while b"process_starts" not in listening.readline():
        pass
    time.sleep(0.5)
    began = time.monotonic()
    assert demo.stop(number) == status
    assert time.monotonic() - began < 10
    assert "Traceback" not in demo.output
    assert not list(demo.temporary.glob("magnet-train-*"))


def test_listening_on_the_network_is_reported(start_demo: Callable[..., Any]) -> None:
    demo = start_demo("--host", "0.0.0.0")
    deadline = time.monotonic() + 10
    while "everyone who can reach this address can use it, without a password" not in demo.output:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "state done" in Visitor(demo.url).ask()
