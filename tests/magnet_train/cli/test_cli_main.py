"""The name of the command: found, or refused with the nearest one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from magnet_train.cli.commands import verify
from magnet_train.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("word", "hint"), [("genrate", "did you mean generate?"), ("xyz", ", ".join(COMMANDS))]
)
def test_an_unknown_command(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([word])
    assert caught.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith(f"magnet-train: error: there is no command '{word}'; ")
    assert hint in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "wrong", "near"),
    [
        ("tokenize --audoi a --out b", "--audoi", "--audio"),
        ("tokenize --audio a --out b --work-rs=3", "--work_rs", "--workers"),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest(
    words: str, wrong: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert f"error: there is no option {wrong}; did you mean {near}?" in capsys.readouterr().err


def test_an_abbreviated_option_is_not_misspelt(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tokenize", "--aud", "a"])
    assert "the following arguments are required: --out" in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)


@pytest.mark.parametrize(
    "cause",
    [
        lambda: np.empty(2**55),
        lambda: torch.empty(2**55),
        lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")),
        lambda: fail(
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        ),
        lambda: fail(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")),
    ],
    ids=["numpy", "cpu", "cuda", "cublas", "cpu elsewhere"],
)
def test_memory_that_does_not_suffice_is_one_sentence(
    cause: Callable[[], object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "run", lambda request: cause())
    assert main(["verify", "shards"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("magnet-train: error: memory does not suffice (")
    assert line.endswith("); give smaller batches or less at once.")
    assert "enforce fail" not in line  # where in torch's source


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "run", lambda request: fail(RuntimeError("no kernel")))
    with pytest.raises(RuntimeError, match="no kernel"):
        main(["verify", "shards"])


def fail(error: Exception) -> None:
    raise error


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU OpenMP on Linux alone")
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_threads_sleep_soon_unless_told_otherwise(
    given: dict[str, str], expected: str, tmp_path: Path
) -> None:
    """The library itself shows its settings when it is loaded, with torch."""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = ["-m", "magnet_train", "inspect", str(tmp_path / "nowhere.ckpt")]
    done = subprocess.run(
        [sys.executable, *words],
        env={**kept, **given, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
    )
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
