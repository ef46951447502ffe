"""What users rely on stays as it was recorded, and the files that they have can still be read.

A change of these is a decision: see MEANT.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from make_public_files import FILES, RESULTS, fit, generate_all, make_all, training_losses
from record_public import HERE, record

from magnet_train.cli.commands import inspect
from magnet_train.cli.main import main
from magnet_train.errors import Preempted, UserError

MEANT = (
    "this changes what users rely on; if it is meant, record it again with `python tests/public/record_public.py` "
    "and write it into CHANGELOG.md"
)
RECORDED = {path.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*.json"))}


@pytest.fixture(scope="module")
def recorded_now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Read off the code as it is, and off files that it writes now."""
    files = tmp_path_factory.mktemp("public") / "files"
    make_all(files)
    return json.loads(json.dumps(record(files)))  # tuples become lists, as in the files


@pytest.mark.parametrize("name", RECORDED)
def test_nothing_changed_by_accident(name: str, recorded_now: dict[str, Any]) -> None:
    now, before = recorded_now[name], RECORDED[name]
    for part in sorted(now.keys() | before.keys()):
        assert now.get(part) == before.get(part), f"{part}: {MEANT}"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stored files, in the working directory, as a user has them."""
    shutil.copytree(FILES, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


def test_stored_models_load_and_generate_the_same_tokens(files: Path) -> None:
    assert generate_all(files) == json.loads((files / RESULTS).read_text())["tokens"], MEANT


def test_a_stored_checkpoint_resumes(files: Path) -> None:
    """The losses of the steps after it are those of the run that was not stopped."""
    (files / "run").mkdir()
    shutil.copyfile("last.ckpt", "run/step=0000002.ckpt")
    fit(Path("run"), "--resume", "required")
    expected = json.loads((files / RESULTS).read_text())["losses"]
    # Rounded: another processor adds up in another order.
    assert training_losses(Path("run")) == pytest.approx({"2": expected["2"], "3": expected["3"]}, rel=1e-4)
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("path", ["shards", "last.ckpt", "export", "audiocraft"])
def test_stored_files_can_be_inspected(path: str, files: Path) -> None:
    assert main(["inspect", path]) == 0


def test_stored_shards_are_sound_and_growing_leaves_them(files: Path) -> None:
    before = {path.name: path.read_bytes() for path in (files / "shards").iterdir()}
    assert main(["verify", "shards"]) == 0
    assert {path.name: path.read_bytes() for path in (files / "shards").iterdir()} == before


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (None, 0),
        (UserError("a file is missing; copy it."), 1),
        (Preempted("saved at step 4"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(raised: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "shards"]) == code


@pytest.mark.parametrize("words", [["no-such-command"], ["inspect", "--no-such-option"], ["fit", "--x", "1"]])
def test_exit_code_of_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
