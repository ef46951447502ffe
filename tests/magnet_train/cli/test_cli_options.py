"""Options are spelled with underscores in `--help`, and taken with underscores or dashes, by every command."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

from magnet_train.cli.main import COMMANDS, LIGHTNING_COMMANDS, _as_declared, _options, main

OURS = [name for name in COMMANDS if name not in LIGHTNING_COMMANDS]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"magnet_train.cli.commands.{command}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("command", OURS)
def test_underscores_are_declared_and_dashes_accepted(command: str) -> None:
    parser = parser_of(command)
    options = [option for option in _options(parser) if option.startswith("--")]
    assert [option for option in options if "-" in option.removeprefix("--").removeprefix("no-")] == []
    for option in options:
        name = option.removeprefix("--")
        for spelling in (name.replace("_", "-"), name.replace("-", "_")):
            assert _as_declared([f"--{spelling}"], parser) == [option]
            assert _as_declared([f"--{spelling}=a-b_c"], parser) == [f"{option}=a-b_c"]


@pytest.mark.parametrize("option", ["--write-index", "--write_index"])
def test_both_spellings_reach_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["verify", str(tmp_path), option]) == 1
    assert "holds no .tar" in capsys.readouterr().err


def test_values_are_left_as_they_are() -> None:
    parser = parser_of("generate")
    words = ["--text", "slow-piano_solo", "--out", "my-folder", "-x-y", "a--b"]
    assert _as_declared(words, parser) == words
