"""Options are spelled with underscores in `--help`, and taken with underscores or dashes, by every command."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from magnet_train.cli.main import COMMANDS, LIGHTNING_COMMANDS, main, with_underscores

OURS = [name for name in COMMANDS if name not in LIGHTNING_COMMANDS]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"magnet_train.cli.commands.{command}").add_arguments(parser)
    return parser


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from options_of(subparser)


@pytest.mark.parametrize("command", OURS)
def test_underscores_are_declared_and_dashes_accepted(command: str) -> None:
    options = list(options_of(parser_of(command)))
    assert [option for option in options if "-" in option.removeprefix("--").removeprefix("no-")] == []
    for option in options:
        name = option.removeprefix("--")
        for spelling in (name.replace("_", "-"), name.replace("-", "_")):
            assert with_underscores(f"--{spelling}") == option
            assert with_underscores(f"--{spelling}=a-b_c") == f"{option}=a-b_c"


@pytest.mark.parametrize("option", ["--write-index", "--write_index"])
def test_both_spellings_reach_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["verify", str(tmp_path), option]) == 1
    assert "holds no .tar" in capsys.readouterr().err


def test_values_are_left_as_they_are() -> None:
    words = ["--text", "slow-piano_solo", "--out", "my-folder", "-x-y", "a--b", "--", "--a-text of its own"]
    assert list(map(with_underscores, words)) == words
