"""Without an extra, what needs it says in one sentence which to install; everything else works.

The processes of these tests see only what `pip install magnet-train` brings. `.ci/run` trains and generates there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from core_environment import link_core

ROOT = Path(__file__).parents[1]
FIT = ("fit", "-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "--run", "{out}/run")


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the packages of the core."""
    folder = tmp_path_factory.mktemp("core") / "packages"
    link_core(folder)
    return folder


def run(core: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-m", "magnet_train", *words],  # -S: without this environment's own packages
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{core}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("demo", ("demo", "--model", "x.ckpt")),
        ("describe", ("describe", "{out}")),
        ("plots", ("quickstart", "--out", "{out}/quickstart")),
        pytest.param("s3", (*FIT, "--data.shards", "s3://bucket/shards"), marks=pytest.mark.slow),
        pytest.param("tensorboard", (*FIT, "-c", "configs/logger/tensorboard.yaml"), marks=pytest.mark.slow),
    ],
)
def test_a_missing_extra_is_one_sentence(
    extra: str, words: tuple[str, ...], core: Path, tmp_path: Path
) -> None:
    done = run(core, *(word.format(out=tmp_path) for word in words))
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert f'which is not installed; run pip install "magnet-train[{extra}]".' in lines[-1]
    assert len([line for line in lines if line.startswith("magnet-train: error:")]) == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extra", ["av", "parquet"])
def test_a_missing_reader_is_one_sentence(extra: str, core: Path, tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / ("a.m4a" if extra == "av" else "a.parquet")).write_bytes(b"\x00\x00\x00\x1cftypisom")
    done = run(
        core, "tokenize", "--audio", str(audio), "--out", str(tmp_path / "shards"), "--codec", "quickstart"
    )
    assert done.returncode == 1, done.stderr
    assert f'pip install "magnet-train[{extra}]"' in done.stderr.splitlines()[-1]
    assert len([line for line in done.stderr.splitlines() if line.startswith("magnet-train: error:")]) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "shards").exists()


def test_the_extras_are_not_in_the_core(core: Path) -> None:
    """Else the tests above would test nothing."""
    for name in ("av", "gradio", "librosa", "matplotlib", "pyarrow", "s3fs", "tensorboard"):
        assert not (core / name).exists()
