"""The command's name: found, or told with the one that was probably meant."""

from __future__ import annotations

import pytest

from magnet_train.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("word", "hint"), [("genrate", "did you mean generate?"), ("xyz", ", ".join(COMMANDS))]
)
def test_a_command_that_is_not_there(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([word])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"magnet-train: error: there is no command '{word}'; ")
    assert hint in said
    assert len(said.splitlines()) == 1


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
