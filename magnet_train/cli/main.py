"""Find the command that was asked for and run it.

Nothing heavy is imported here: `magnet-train --help` answers at once, and each command imports torch and
friends only when it runs.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from magnet_train import __version__
from magnet_train.cli.ranks import alone
from magnet_train.errors import Preempted, UserError
from magnet_train.storage.plain_text import printable
from magnet_train.training.stop_request import PREEMPTED, START_LIMIT, stop_request


def _import_our_datamodules() -> None:
    """Import our package `datamodules` before a folder of that name in the working directory can take its place.

    `python -m` and PYTHONPATH put that directory first. From then on the name is ours.
    """
    root = str(Path(__file__).parents[2])
    sys.path.insert(0, root)
    try:
        importlib.import_module("datamodules")
    finally:
        sys.path.remove(root)


_import_our_datamodules()

# A command stands here once it is built. Those of LightningCLI share one module.
COMMANDS = {
    "quickstart": "watch the whole chain learn on two CPU cores, offline, in minutes",
    "tokenize": "turn a folder of captioned audio into token shards",
    "verify": "check every byte and token of a folder of shards",
    "inspect": "show what is in shards, a checkpoint or an exported model",
    "fit": "train a model",
    "validate": "measure a checkpoint on validation data",
    "test": "measure a checkpoint on test data",
    "predict": "generate one clip for each caption of the data",
    "generate": "make audio from text with a trained model",
    "evaluate": "measure generated against real sound: FAD-CLAP, CLAP score, KL",
    "demo": "try a model on a page in the browser",
    "benchmark": "measure training, generation and the data loader beside the usual way of doing them",
    "export": "write a self-contained model folder from a checkpoint",
}
LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")

USAGE_ERROR = 2
FAILURE = 1
INTERRUPTED = 130  # what a shell reports for Ctrl-C


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="magnet-train",
        usage="magnet-train COMMAND [options]",
        description="Train masked audio-token models (MAGNeT): audio in, audio that obeys its caption out.",
        epilog=f"commands:\n{listing}\n\n`magnet-train COMMAND --help` lists the options of one, with their units.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"magnet-train {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _chosen_command(word: str) -> str:
    """Return the command; leave with 2 if there is none of that name."""
    command: str = _overview().parse_args([word]).command
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        print(f"magnet-train: error: there is no command {command!r}; {hint}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    return command


def _run_command(name: str, arguments: Sequence[str]) -> None:
    if name in LIGHTNING_COMMANDS:
        module = importlib.import_module("magnet_train.cli.lightning")
        module.run([name, *arguments])
        return
    module = importlib.import_module(f"magnet_train.cli.commands.{name}")
    parser = argparse.ArgumentParser(prog=f"magnet-train {name}", description=module.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    module.run(parser.parse_args(_as_declared(arguments, parser)))


def _as_declared(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Spell options as the parser has them: --batch_size and --batch-size are one."""
    declared = {option.replace("-", "_"): option for option in _options(parser)}

    def spell(word: str) -> str:
        name, equals, value = word.partition("=")
        return declared.get(name.replace("-", "_"), name) + equals + value if word.startswith("--") else word

    return [spell(word) for word in words]


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _options(subparser)


def _print_whatever_the_terminal() -> None:
    """Escape characters that the output's encoding lacks, in ASCII all but a hundred, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _shown(error: Exception) -> str:
    """Return a message whose quotations from files do nothing to the terminal."""
    return "\n".join(map(printable, str(error).split("\n")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `magnet-train`; those of this process when None.

    Returns:
        0 on success, 1 after an error that the user can mend (told in one sentence on stderr), 75 when a signal
        stopped training and everything is saved, 130 when interrupted. Wrong usage leaves through
        `SystemExit(2)`, as argparse has it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _overview().print_help(sys.stderr)
        return USAGE_ERROR
    _print_whatever_the_terminal()
    command = _chosen_command(arguments[0])
    try:
        _run_command(command, arguments[1:])
    except UserError as error:
        print(f"magnet-train: error: {_shown(error)}", file=sys.stderr)
        return FAILURE
    except Preempted as stop:
        print(f"magnet-train: {_shown(stop)}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt as stop:
        print(f"magnet-train: {stop.args[0] if stop.args else 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `magnet-train inspect ... | head` is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run() -> None:
    """Run the command of this process; the entry point of the console script."""
    if sys.argv[1:2] == ["fit"]:
        # For as long as the process lives: importing torch alone takes seconds.
        stop_request.listen(limit=0.0 if alone() else START_LIMIT)
    sys.exit(main())
