"""The name of the command: found, or refused with the nearest one."""

from __future__ import annotations

import pytest

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


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
