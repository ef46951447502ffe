"""Files are complete or absent: real files, and a kernel that refuses to write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors, point_to, sweep_partial_files


def write(target: Path, content: bytes) -> None:
    with atomic_write(target) as file:
        file.write(content)


def test_a_file_appears_once_it_is_complete(tmp_path):
    target = tmp_path / "new" / "file"
    with atomic_write(target) as file:
        file.write(b"first")
        assert not target.exists()
    write(target, b"second")
    assert target.read_bytes() == b"second"
    assert list(tmp_path.rglob("*")) == [target.parent, target]


def test_a_failure_leaves_the_file_before(tmp_path):
    def fail_halfway() -> None:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"half of ")
            raise ZeroDivisionError

    write(tmp_path / "file", b"before")
    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert (tmp_path / "file").read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("size", [2_000, 2_000_000], ids=["when it is closed", "when it is written"])
def test_no_room_is_one_sentence_and_leaves_the_file_before(tmp_path, size, no_file_larger_than):
    write(tmp_path / "file", b"before")
    with no_file_larger_than(1_000), pytest.raises(UserError) as caught:
        write(tmp_path / "file", bytes(size))
    path = tmp_path / "file"
    assert str(caught.value) == f"no room on disk for {path}; free some space or write to another folder."
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_impossible_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*file/within \(Not a directory|File exists\); check"):
        write(tmp_path / "file" / "within", b"")


def test_an_error_behind_another_is_found_and_a_bug_stays_one(tmp_path):
    """torch's zip writer raises a RuntimeError of its own while it handles the kernel's refusal."""

    def refused() -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(UserError, match="no room on disk"), explain_disk_errors(tmp_path / "file"):
        refused()
    with pytest.raises(RuntimeError, match="of ours"), explain_disk_errors(tmp_path / "file"):
        raise RuntimeError("a bug of ours")


def test_a_link_is_replaced_and_moves_with_its_folder(tmp_path):
    folder = tmp_path / "a"
    for name in ("one", "two"):
        write(folder / name, name.encode())
        point_to(folder / "newest", folder / name)
    folder.rename(tmp_path / "b")
    assert (tmp_path / "b" / "newest").read_bytes() == b"two"
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["newest", "one", "two"]


def test_sweeping_removes_only_partial_files(tmp_path):
    names = [".step=1.ckpt.partial", "step=1.ckpt", ".hidden", "notes.partial"]
    for name in names:
        (tmp_path / name).write_text("")
    assert [path.name for path in sweep_partial_files(tmp_path)] == names[:1]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
