"""Checkpoint files survive kills, full disks and damage; real processes, real files."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from magnet_train.errors import UserError
from magnet_train.training.checkpointing import (
    LAST,
    AtomicCheckpointIO,
    checkpoints_of,
    find_checkpoint,
    why_unreadable,
)

OTHER_FILESYSTEM = Path("/dev/shm")


def content(step: int) -> dict:
    return {"state_dict": {"w": torch.full((1000,), float(step))}, "loops": {}, "optimizer_states": []}


def kills(folder: Path, count: int, megabytes: int, tmpdir: Path) -> dict:
    script = Path(__file__).with_name("kill_while_writing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(count), str(megabytes)],
        env=os.environ | {"TMPDIR": str(tmpdir), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_hundred_kills_leave_no_unreadable_checkpoint(tmp_path):
    if not OTHER_FILESYSTEM.is_dir() or OTHER_FILESYSTEM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second filesystem at /dev/shm")
    found = kills(tmp_path, 100, 40, OTHER_FILESYSTEM)
    assert found["unreadable"] == found["went_back"] == found["left"] == 0
    assert found["steps"] > 50  # they did write
    assert found["swept"] > 20  # and were killed while they did


def test_the_newest_is_chosen_and_the_pointer_follows(tmp_path):
    plugin = AtomicCheckpointIO()
    for step in (1, 2):
        plugin.save_checkpoint(content(step), tmp_path / f"step={step}.ckpt")
    assert (tmp_path / LAST).resolve() == (tmp_path / "step=2.ckpt").resolve()
    assert checkpoints_of(tmp_path) == [tmp_path / "step=2.ckpt", tmp_path / "step=1.ckpt"]
    assert find_checkpoint(tmp_path) == (tmp_path / "step=2.ckpt", [])
    plugin.remove_checkpoint(tmp_path / "step=2.ckpt")
    assert find_checkpoint(tmp_path)[0] == tmp_path / "step=1.ckpt"


def test_a_run_folder_can_be_moved(tmp_path):
    AtomicCheckpointIO().save_checkpoint(content(1), tmp_path / "a" / "step=1.ckpt")
    (tmp_path / "a").rename(tmp_path / "b")
    assert torch.load(tmp_path / "b" / LAST, weights_only=True).keys() == content(1).keys()


def test_every_damage_is_found(tmp_path):
    path = tmp_path / "step=1.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1), path)
    assert why_unreadable(path) is None
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert why_unreadable(path) is not None, length
    start = whole.index(content(1)["state_dict"]["w"].numpy().tobytes())
    for place in range(start, start + 4000, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert why_unreadable(path) is not None, place
    torch.save({"state_dict": {}}, path)
    assert why_unreadable(path) == "it holds weights but no training state"


class _Runs:
    """What a malicious checkpoint would hold."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"state_dict": _Runs(tmp_path / "ran")}, tmp_path / "step=1.ckpt")
    assert why_unreadable(tmp_path / "step=1.ckpt") is not None
    with pytest.raises(UserError, match=r"step=1\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step=1.ckpt", weights_only=False)
    (tmp_path / "step=2.ckpt").write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
    assert find_checkpoint(tmp_path)[0] is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [1000, 1_000_000], ids=["small", "large"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, size):
    """The kernel refuses to let a file grow past a limit, for root as well; a full disk fails in the same call."""
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from magnet_train.training.checkpointing import AtomicCheckpointIO; from magnet_train.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "folder, plugin = Path(sys.argv[1]), AtomicCheckpointIO()\n"
        "plugin.save_checkpoint({'w': torch.ones(10)}, folder / 'step=1.ckpt')\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size * 2}, {size * 2}))\n"
        "try: plugin.save_checkpoint({'w': torch.ones(%d)}, folder / 'step=2.ckpt')\n"
        % size
        + "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "saving a checkpoint failed, the previous checkpoints are intact: no room on disk for "
        f"{tmp_path / 'step=2.ckpt'}; free some space"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, "step=1.ckpt"]
    assert torch.load(tmp_path / LAST, weights_only=True)["w"].sum() == 10


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        AtomicCheckpointIO().save_checkpoint(content(1), tmp_path / "file" / "step=1.ckpt")
