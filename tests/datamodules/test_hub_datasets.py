"""Data sets at hf://, from a hub that this test serves."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules.tokenize.audio_files import local_source
from magnet_train.errors import UserError

COMMIT = "a" * 40


def noise() -> bytes:
    """Return six seconds as a wav."""
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.random.default_rng(0).standard_normal(48_000), 8_000, format="WAV")
    return file.getvalue()


FILES = {
    "README.md": b"# Songs\n",
    "data/metadata.csv": b"file_name,text\na.wav,one\n",
    "data/a.wav": b"RIFF",
    "other/b.wav": b"RIFFRIFF",
    "sound/noise.wav": noise(),
}


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for to download a part of a data set."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"/datasets/someone/songs/resolve/{COMMIT}/")
        if path.startswith("/api/datasets/someone/songs"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "someone/songs", "sha": COMMIT, "siblings": siblings, "private": False}
            body = json.dumps(entries if "/tree/" in path else info).encode()
        elif name in FILES:
            body = FILES[name]
            self.asked.append(name)
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def listed(hub: str, cache: Path, name: str) -> subprocess.CompletedProcess[str]:
    """List a data set in a process of its own: the hub's library reads its address once, when it is imported."""
    code = (
        "import sys; from datamodules.tokenize.audio_files import list_audio, local_source\n"
        "print([(file.name, dict(file.fields)) for file in list_audio(local_source(sys.argv[1]))])"
    )
    return run_python(hub, cache, "-c", code, name)


def run_python(hub: str, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | settings | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_a_folder_of_a_data_set(hub: str, tmp_path: Path, revision: str) -> None:
    """Nothing else is downloaded, and the second time nothing at all."""
    name = f"hf://datasets/someone/songs{revision}/data"
    expected = "[('a.wav', {'text': 'one'})]\n"
    done = listed(hub, tmp_path, name)
    assert done.stdout == expected, done.stderr
    assert set(Hub.asked) == {"data/metadata.csv", "data/a.wav"}
    again = listed("http://127.0.0.1:9", tmp_path, name)  # where nothing listens
    assert again.stdout == expected, again.stderr


def test_a_codec_from_a_folder_of_a_data_set(hub: str, tmp_path: Path) -> None:
    name, out = "hf://datasets/someone/songs/sound", tmp_path / "codec"
    words = ["-m", "magnet_train", "codec", "--audio", name, "--out", str(out), "--steps", "2"]
    small = ["--sample_rate", "8000", "--codebooks", "2", "--card", "16", "--minutes", "0.1"]
    done = run_python(hub, tmp_path / "cache", *words, *small)
    assert done.returncode == 0, done.stderr
    assert set(Hub.asked) == {"sound/noise.wav"}
    assert (
        f"magnet-train codec --audio {name} --out"
        in json.loads((out / "training.json").read_text())["command"]
    )


def test_what_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    done = listed(hub, tmp_path, "hf://datasets/someone/else")
    assert (
        "UserError: data set someone/else is neither a folder here nor could it be downloaded" in done.stderr
    )
    done = listed(hub, tmp_path, "hf://datasets/someone/songs/nowhere")
    assert (
        "UserError: data set someone/songs has no nowhere; check hf://datasets/someone/songs/nowhere."
        in done.stderr
    )


def test_a_name_without_a_data_set() -> None:
    with pytest.raises(
        UserError, match="hf://datasets/songs does not name a data set; write hf://datasets/OWNER/NAME"
    ):
        local_source("hf://datasets/songs")
