"""Tell wrong usage of `fit` and its kin in one sentence, with the names that were probably meant."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from magnet_train.cli.configs import CONFIG_OPTIONS
from magnet_train.errors import UserError

_UNKNOWN_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_UNKNOWN_KEY = re.compile(r"does not accept option '([^']+)'")
_UNKNOWN_WORD = re.compile(r"unrecognized arguments: (\S+)")
_WHERE = re.compile(r"Parser key \"([^\"]+)\"")
_CLASS = re.compile(r"class_path='?([\w.]+\w)|class_path '([\w.]+)'")
_BAD_CLASS = re.compile(
    r"Problem with given class_path '([^']+)':\s*((?:module '|No module named|.*Unable to load)[^\n]*)"
)
_BAD_VALUE = re.compile(r"(Expected [^\n]*?)\. Got value: ([^\n]*)")
_MISSING = re.compile(r"the following arguments are required: ([^\n]*)")
_RESTRICTED = re.compile(r"Not of type \w+: ([^\n]*) does not conform to restriction v([^\n]*)")
_CHOICES = re.compile(r"typing\.Literal\[([^\]]*)\]")
_EXPECTED = re.compile(r"- Expected an? (?:<class '(?:[\w.]*\.)?(\w+)'>|([\w.]+)\[)")
_NESTED = re.compile(r"NestedArg\(key='[^']*', val='?(.*?)'?\)")
_GIVEN = re.compile(r"Given value: ([^\n]{0,80})$", re.MULTILINE)
# What has to be named by a configuration: the command line's own defaults are only the kinds of these.
_UNNAMED = ("lightning.LightningDataModule", "magnet_train.training.module.MagnetModule")
_NO_CONFIG = "give a configuration first, -c configs/base.yaml for example"
# What goes without a configuration, or names one; matched at the start, so that `-cFILE` is one too.
_WITHOUT_CONFIG = ("-h", "--help", "--print_config", "--data=", "--data.class_path", *CONFIG_OPTIONS)
_OURS = ("magnet_train", "datamodules")
_CALLBACKS = ("lightning.pytorch.callbacks", "lightning.fabric.utilities.spike")


class OneSentenceParser(LightningArgumentParser):
    """An argument parser whose errors are one line on stderr, and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and leave; a parser of a class inside another only reports to the outer one."""
        if not self.exit_on_error:
            super().error(message, ex)
        keys = [action.dest for action in getattr(ex, "subcommand_parser", self)._actions]
        print(f"magnet-train: error: {one_sentence(message, keys)}", file=sys.stderr)
        sys.exit(2)


def require_configuration(arguments: Sequence[str]) -> None:
    """Leave with 2 where nothing says of which class the data is: a first call of `fit` without `-c`."""
    command, *words = arguments
    if not any(word.startswith(_WITHOUT_CONFIG) or word == "--data" or ".help" in word for word in words):
        print(
            "magnet-train: error: no configuration given; start with -c configs/base.yaml, for example `magnet-train "
            f"{command} -c configs/base.yaml --data.shards FOLDER --run FOLDER`.",
            file=sys.stderr,
        )
        sys.exit(2)


def refusal(error: BaseException | None) -> UserError | None:
    """Make one sentence of what a library refuses because of something that the user wrote.

    That is: whatever Lightning calls a misconfiguration; what the constructor of a class of the configuration raises;
    and what Lightning's callbacks raise about a run.

    Returns:
        None for anything else, which is a bug and keeps its traceback; so does what our own classes raise.
    """
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules = [str(frame.f_globals.get("__name__", "")) for frame in frames]
        text = " ".join(str(error).replace("`", "").split())[:300].rstrip(".!: ")
        built = max((n for n, name in enumerate(modules) if name.startswith("jsonargparse")), default=-1) + 1
        if 0 < built < len(frames) and isinstance(error, (MisconfigurationException, ValueError, TypeError)):
            kind = type(frames[built].f_locals.get("self"))
            if frames[built].f_code.co_name == "__init__" and kind.__module__.partition(".")[0] not in _OURS:
                return UserError(
                    f"{kind.__qualname__} refuses its settings ({text}); correct its init_args in the configuration."
                )
        in_callback = bool(modules) and modules[-1].startswith(_CALLBACKS)
        if isinstance(error, MisconfigurationException) or (
            in_callback and isinstance(error, (RuntimeError, ValueError, TypeError))
        ):
            who = type(frames[-1].f_locals.get("self")).__name__ if in_callback else "the trainer"
            where = "trainer.callbacks" if in_callback else "trainer.*"
            return UserError(f"{who} cannot go on ({text}); change {where} in the configuration.")
        error = error.__cause__ or error.__context__
    return None


def one_sentence(message: str, keys: Iterable[str] = ()) -> str:
    """Shorten what jsonargparse says.

    Args:
        message: Its message, of several lines.
        keys: Options that there are.
    """
    message = _NESTED.sub(r"\1", message)
    where = ".".join(dict.fromkeys(_WHERE.findall(message)))
    if found := _UNKNOWN_OPTION.search(message):
        classes = [one or other for one, other in _CLASS.findall(message)]
        name = classes[-1] if classes else where
        if name == _UNNAMED[0]:
            return f"nothing says of which class {where} is; {_NO_CONFIG}."
        return f"{where} takes no '{found[1]}' ({name}); {_nearest(found[1], _options_of(name))}."
    if found := _UNKNOWN_KEY.search(message) or _UNKNOWN_WORD.search(message):
        return f"there is no option '{found[1]}'; {_nearest(found[1].lstrip('-'), list(keys))}."
    if found := _BAD_CLASS.search(message):
        return f"{where} names the class {found[1]}, which cannot be loaded ({found[2].strip()}); check its spelling."
    if found := _BAD_VALUE.search(message):
        kind = re.sub(r"a <class '([^']+)'>", r"\1", found[1]).replace("a typing.Literal", "one of ")
        return f"{where} is '{found[2]}': {kind[0].lower()}{kind[1:]}."
    if found := _MISSING.search(message):
        classes = [one or other for one, other in _CLASS.findall(message[: found.start()])]
        return _missing(where, classes[-1] if classes else "", found[1])
    if found := _RESTRICTED.search(message):
        return f"{where} is {found[1]}: expected a value {found[2]}."
    if "Does not validate against any of the Union subtypes" in message and (found := _GIVEN.search(message)):
        return f"{where} is '{found[1]}': expected {_expected(message)}."
    text = " ".join(message.split())
    return f"{text[:400]}{'...' if len(text) > 400 else ''}"


def _missing(where: str, class_path: str, names: str) -> str:
    if not where or class_path == _UNNAMED[1]:
        keys = [".".join(filter(None, [where, re.sub(r"^\w+\.", "", name)])) for name in names.split(", ")]
        return f"{' and '.join(keys)} must be set; {_NO_CONFIG}."
    return f"{where} ({class_path or 'its class'}) needs {names}; set {where}.{names.split(', ')[0]}."


def _expected(message: str) -> str:
    """List the values that would do where they are known, else their kinds."""
    listed = ",".join(_CHOICES.findall(message))
    if listed:
        return "one of " + ", ".join(dict.fromkeys(word.strip("' ") for word in listed.split(",")))
    kinds = ["class path"] if "dot import path" in message else []
    kinds += [one or other.rpartition(".")[2] for one, other in _EXPECTED.findall(message)]
    return " or ".join(dict.fromkeys(kinds)).replace("NoneType", "null") or "something else"


def _nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if not close:
        head = word.split(".")[0]
        close = difflib.get_close_matches(
            head, sorted({name.split(".")[0] for name in names}), n=3, cutoff=0.5
        )
    if close:
        return f"the nearest {'are' if len(close) > 1 else 'is'} {', '.join(close)}"
    return f"there are {', '.join(names)}" if 0 < len(names) <= 20 else "see --help for those there are"


def _options_of(class_path: str) -> list[str]:
    """Name the constructor arguments of a class, those of its bases too where it passes them on."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
        signatures = [
            inspect.signature(base.__init__) for base in kind.__mro__[:-1] if "__init__" in vars(base)
        ]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    names: dict[str, None] = {}
    for signature in signatures:
        parameters = list(signature.parameters.values())[1:]
        names |= {p.name: None for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in names if name != "params"]  # an optimizer's; they come from the model
