"""`verify` through the real command line."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.shard_writer import ShardWriter
from magnet_train.cli.main import main
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo(id="tiny", sha256="ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=4, card=64)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    with ShardWriter(folder, CODEC, shard_bytes=8_000) as writer:
        for number in range(6):
            writer.add(f"clip{number}", np.full((4, 60), number), {"text": f"sound {number}"})
    return folder


def test_sound_shards(shards: Path, capsys: Any) -> None:
    assert main(["verify", str(shards)]) == 0
    assert "all sound: 6 clips, 7.2 s, 2 shards, " in capsys.readouterr().out


def test_one_of_each_is_not_called_several(tmp_path: Path, capsys: Any) -> None:
    with ShardWriter(tmp_path / "one", CODEC) as writer:
        writer.add("clip", np.zeros((4, 60), int), {"text": "sound"})
    assert main(["verify", str(tmp_path / "one")]) == 0
    assert "1 clip, 1.2 s, 1 shard, " in capsys.readouterr().out


def test_damage_names_shard_and_key(shards: Path, capsys: Any) -> None:
    path = shards / "shard-000000.tar"
    with tarfile.open(path) as tar:
        token = tar.getmember("clip1.npy").offset_data + 129
    data = bytearray(path.read_bytes())
    data[token] = 7
    path.write_bytes(data)
    assert main(["verify", str(shards), "--workers", "1"]) == 1
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert printed.count("shard-000000.tar, key clip1: tokens 1..1793 leave 0..63") == 1
    assert captured.err.count("magnet-train: error:") == 1


def test_several_problems_are_listed_once(shards: Path, capsys: Any) -> None:
    for name in ("shard-000000.tar", "shard-000001.tar"):
        (shards / name).write_bytes((shards / name).read_bytes()[:700])
    assert main(["verify", str(shards), "--workers", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("shard-000001.tar: ") == 1
    assert "2 files, listed above" in captured.err


def test_many_problems_are_cut_short(shards: Path, capsys: Any) -> None:
    for number in range(60):
        (shards / f"stray{number}.tar").touch()
    assert main(["verify", str(shards)]) == 1
    captured = capsys.readouterr()
    assert "... and 10 more" in captured.out
    assert "60 problems" in captured.err


def test_a_codec_that_is_named_nowhere(shards: Path, capsys: Any) -> None:
    (shards / "manifest.json").unlink()
    assert main(["verify", str(shards), "--write-index"]) == 1
    assert "does not say which codec" in capsys.readouterr().err


def test_a_lost_index_is_made_again(shards: Path, capsys: Any) -> None:
    (shards / "index.npy").unlink()
    assert main(["verify", str(shards)]) == 1
    assert main(["verify", str(shards), "--write-index"]) == 0
    assert main(["verify", str(shards)]) == 0
    assert "indexed 6 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("workers", "message"), [("0", "0 is not at least 1"), ("x", "'x' is not a whole number")]
)
def test_workers(shards: Path, capsys: Any, workers: str, message: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(shards), "--workers", workers])
    assert f"argument --workers: {message}" in capsys.readouterr().err


def test_a_codec_without_an_index_to_write(shards: Path, capsys: Any) -> None:
    assert main(["verify", str(shards), "--codec", "quickstart"]) == 1
    assert "--codec is for --write_index" in capsys.readouterr().err


def test_a_problem_names_its_own_remedy(shards: Path, capsys: Any) -> None:
    (shards / "index.npy").unlink()
    assert main(["verify", str(shards)]) == 1
    assert capsys.readouterr().err.endswith("index.npy: is missing; make it again with --write_index.\n")
    (shards / "index.npy").mkdir()
    assert main(["verify", str(shards)]) == 1
    assert "index.npy: cannot be read (Is a directory); copy it again" in capsys.readouterr().err


def test_files_that_may_not_be_read(
    shards: Path, without_rights: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (shards / "shard-000001.tar").chmod(0)
    runs = [without_rights("verify", shards), without_rights("inspect", shards)]
    (shards / "index.npy").chmod(0)
    runs.append(without_rights("inspect", shards))
    for name in ("shard-000000.tar", "manifest.json"):
        (shards / name).chmod(0)
    runs.append(without_rights("verify", shards))
    (shards / "manifest.json").unlink()
    runs.append(without_rights("verify", shards, "--write-index"))
    remedy = "cannot be read (Permission denied); correct its permissions."
    start = f"magnet-train: error: {shards}"
    assert [run.stderr.splitlines()[-1] for run in runs] == [
        f"{start} has 1 problem: shard-000001.tar: {remedy}",
        f"{start}/shard-000001.tar {remedy}",
        f"{start}/index.npy {remedy}",
        f"{start}/manifest.json {remedy}",
        f"{start}/shard-000000.tar {remedy}",
    ]
    assert {run.returncode for run in runs} == {1}
    assert not any("Traceback" in run.stderr for run in runs)


def test_a_folder_among_foreign_tars(shards: Path, capsys: Any) -> None:
    (shards / "manifest.json").unlink()
    (shards / "shard-000009.tar").mkdir()
    assert main(["verify", str(shards), "--write-index", "--codec", "quickstart"]) == 1
    assert "shard-000009.tar: cannot be read (Is a directory)" in capsys.readouterr().err


def test_foreign_tars_with_a_named_codec(shards: Path, capsys: Any) -> None:
    """The quickstart codec has 4 codebooks of more than 6 entries, so it might have made these."""
    (shards / "index.npy").unlink()
    (shards / "manifest.json").unlink()
    assert main(["verify", str(shards)]) == 1
    assert "--write_index" in capsys.readouterr().err
    assert main(["verify", str(shards), "--write-index", "--codec", "quickstart"]) == 0
    assert main(["verify", str(shards)]) == 0
    assert "codec quickstart" in capsys.readouterr().out


def test_no_folder(tmp_path: Path, capsys: Any) -> None:
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert "magnet-train tokenize" in capsys.readouterr().err
