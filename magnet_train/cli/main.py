"""The entry point of `magnet-train`: find the command and run it.

Each command imports torch and other heavy packages only when it runs, so `magnet-train --help` prints at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from magnet_train import __version__
from magnet_train.cli.ranks import is_only_process
from magnet_train.errors import Preempted, UserError, memory_reason
from magnet_train.storage.plain_text import printable
from magnet_train.training.stop_request import PREEMPTED, START_LIMIT, stop_request


def _import_our_datamodules() -> None:
    """Import our package `datamodules`, not a folder of that name in the working directory.

    `python -m` and PYTHONPATH put that directory first on the path.
    """
    root = str(Path(__file__).parents[2])
    sys.path.insert(0, root)
    try:
        importlib.import_module("datamodules")
    finally:
        sys.path.remove(root)


_import_our_datamodules()

COMMANDS = {
    "quickstart": "train a small model end to end: offline, two CPU cores, a few minutes",
    "describe": "compute tempo, key, loudness and tags of audio files, for their captions",
    "tokenize": "turn a folder of captioned audio into token shards",
    "codec": "make a small EnCodec from your own audio: offline, on a CPU, in minutes",
    "verify": "check every byte and token of a folder of shards",
    "inspect": "show what is in shards, a checkpoint or an exported model",
    "fit": "train a model",
    "validate": "measure a checkpoint on validation data",
    "test": "measure a checkpoint on test data",
    "predict": "generate one clip for each validation caption",
    "generate": "generate audio from text with a trained model",
    "evaluate": "compare generated with reference audio, and with what the model was trained on",
    "demo": "try a model in the browser",
    "benchmark": "time training, generation and data loading against the usual implementation",
    "export": "write a self-contained model folder from a checkpoint",
}
LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")

# How often a thread of torch (GNU OpenMP) looks for work before it sleeps. At the library's 300,000, threads that wait
# for each other beside another busy process take all of their shares of the cores for it, see benchmarks/README.md.
SPINS = "5000"

USAGE_ERROR = 2
FAILURE = 1
INTERRUPTED = 130  # what a shell reports for Ctrl-C


class _CommandParser(argparse.ArgumentParser):
    """A parser whose errors name the nearest option for one that is misspelt."""

    _words: Sequence[str] = ()  # that it parses

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and remember the words."""
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with 2; a misspelt option comes before what is missing because of it."""
        options = [name for name in self._option_string_actions if name.startswith("--")]
        for word in self._words:
            given = word.partition("=")[0]
            near = difflib.get_close_matches(given, options, n=1) if given.startswith("--") else []
            if near and not any(name.startswith(given) for name in options):
                message = f"there is no option {given}; did you mean {near[0]}?"
                break
        super().error(message)


def _overview() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:<10}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="magnet-train",
        usage="magnet-train COMMAND [options]",
        description="Train masked audio-token models (MAGNeT) on captioned audio, and generate audio from text.",
        epilog=f"commands:\n{listing}\n\n`magnet-train COMMAND --help` lists the options of a command, with units.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"magnet-train {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _chosen_command(word: str) -> str:
    """Return the command; exit with 2 for an unknown name."""
    command: str = _overview().parse_args([word]).command
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}."
        _say(f"error: there is no command {command!r}; {hint}")
        sys.exit(USAGE_ERROR)
    return command


def _run_command(name: str, arguments: Sequence[str]) -> None:
    words = list(map(with_underscores, arguments))
    if name in LIGHTNING_COMMANDS:
        importlib.import_module("magnet_train.cli.lightning").run([name, *words])
        return
    module = importlib.import_module(f"magnet_train.cli.commands.{name}")
    parser = _CommandParser(prog=f"magnet-train {name}", description=module.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    values = vars(parser.parse_args(words))
    request = values.pop("request", argparse.Namespace)
    module.run(request(**values))


def with_underscores(word: str) -> str:
    """Spell an option as it is declared: with underscores, apart from the `--no-` that argparse puts in front."""
    option, equals, value = word.partition("=")
    if not option.startswith("--") or " " in option:  # a caption
        return word
    return "--" + re.sub("^no_", "no-", option[2:].replace("-", "_")) + equals + value


def _say(text: object) -> None:
    """Print on stderr, without control characters that may come from quoted files."""
    lines = f"magnet-train: {text}".split("\n")
    print("\n".join(map(printable, lines)), file=sys.stderr)


def _is_full_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):  # which might leave no room for torch
        return True
    from magnet_train.models.memory import is_full_memory

    return is_full_memory(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `magnet-train`; those of this process when None.

    Returns:
        0 on success, 1 after an error that the user can correct (one sentence on stderr), 75 when a signal stopped
        training and everything is saved, 130 when interrupted. Wrong usage raises `SystemExit(2)`, as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _overview().print_help(sys.stderr)
        return USAGE_ERROR
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # characters that the output's encoding lacks
    command = _chosen_command(arguments[0])
    try:
        _run_command(command, arguments[1:])
    except UserError as error:
        _say(f"error: {error}")
        return FAILURE
    except Preempted as stop:
        _say(stop)
        return PREEMPTED
    except KeyboardInterrupt as stop:
        _say(stop.args[0] if stop.args else "interrupted")
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if not _is_full_memory(error):
            raise
        _say(
            f"error: memory does not suffice ({memory_reason(error)}); give smaller batches or less at once."
        )
        return FAILURE
    except BrokenPipeError:  # `magnet-train inspect ... | head` is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run() -> None:
    """Run the command of this process; the entry point of the console script."""
    if sys.argv[1:2] == ["fit"]:
        # From the first moment: importing torch alone takes seconds.
        stop_request.listen(limit=0.0 if is_only_process() else START_LIMIT)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported
    sys.exit(main())
