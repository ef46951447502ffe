"""Errors of the parser of `fit`, `validate`, `test` and `predict` as one sentence with the nearest valid names.

jsonargparse reports an error as an indented tree: lines `Parser key "..."` spell the key, and the most deeply indented
lines state what was wrong with its value, one line for each type that it may have.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
_UNKNOWN = re.compile(r"Option '(\S+)' is not|does not accept option '(\S+)'|unrecognized arguments: (\S+)")
_REQUIRED = re.compile(r"arguments are required: (.*)")
_VALUE = re.compile(r"(?:Got|Given) value: (?!NestedArg)(.{0,80})$|: (\S+) does not conform", re.MULTILINE)
_NO_REASON = re.compile(
    r"[ -]*(Parser key|Does not validate|Subtypes|Errors|Problem with|Subclass types|a class path \(|a dict )"
)
# The classes that the command line assumes where no configuration names one.
_ANY_DATA, _OUR_MODEL = "lightning.LightningDataModule", "magnet_train.training.module.MagnetModule"


class OneSentenceParser(LightningArgumentParser):
    """An argument parser whose errors are one line on stderr, with exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit; the parser of a nested class passes it on to the outer parser."""
        if not self.exit_on_error:
            super().error(message, ex)
        options = [action.dest for action in getattr(ex, "subcommand_parser", self)._actions]
        print(f"magnet-train: error: {one_sentence(message, options)}", file=sys.stderr)
        sys.exit(2)


def one_sentence(message: str, options: Iterable[str] = ()) -> str:
    """Shorten an error of jsonargparse.

    Args:
        message: Its message, of several lines.
        options: Names of the options that the command has.
    """
    tree = re.sub(r"\n *Given value.*", "", message)
    key = ".".join(dict.fromkeys(_KEY.findall(tree)))
    classes = _CLASS.findall(tree)
    unknown, required = _UNKNOWN.search(tree), _REQUIRED.search(tree)
    if classes[-1:] == [_ANY_DATA] or (required and classes[-1:] in ([], [_OUR_MODEL])):
        return (
            "the configuration is incomplete: it sets no data or no model; start with -c configs/base.yaml."
        )
    if required:
        return f"{key} ({classes[-1]}) needs {required[1]}; set {key}.{required[1].split(', ')[0]}."
    if unknown:
        word = str(unknown[unknown.lastindex or 0])
        if not key:
            return f"there is no option '{word}'; {_nearest(word.lstrip('-'), list(options))}."
        name = classes[-1] if classes else key
        return f"{key} has no option '{word}' ({name}); {_nearest(word, _options_of(name))}."
    if not key:
        text = " ".join(message.split())
        return f"{text[:400]}{'...' if len(text) > 400 else ''}"
    reasons = " or ".join(_reasons(tree))
    value = _VALUE.search(message)
    given = f" (given '{value[value.lastindex or 0]}')" if value else ""
    return f"{key}: {reasons[:1].lower()}{reasons[1:]}{given}."


def _reasons(tree: str) -> list[str]:
    """Return the most deeply indented reasons, with the types as a user writes them."""
    lines = [line for line in tree.splitlines() if line.strip() and not _NO_REASON.match(line)]
    depth = max((_indent(line) for line in lines), default=0)
    reasons: list[str] = []
    for line in lines:
        if _indent(line) == depth:
            reason = line.strip(" -").partition(". Got value: ")[0].replace("NoneType", "null")
            reason = re.sub(r"an? <class '(?:\w+\.)*(\w+)'>", r"\1", reason)
            reason = re.sub(
                r"Not of type \w+:.* does not conform to restriction", "Expected a number", reason
            )
            reason = re.sub(r"a typing\.Literal\[(.*)\]", r"one of \1", reason)
            reasons.append(reason.removeprefix("Expected ") if reasons else reason)
    return reasons


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if not close:
        groups = sorted({name.split(".")[0] for name in names})
        close = difflib.get_close_matches(word.split(".")[0], groups, n=3, cutoff=0.5)
    if close:
        return f"the nearest {'are' if len(close) > 1 else 'is'} {', '.join(close)}"
    return f"its options are {', '.join(names)}" if 0 < len(names) <= 20 else "see --help for all options"


def _options_of(class_path: str) -> list[str]:
    """Return the constructor arguments of a class, and of its bases where it passes them on."""
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
    return [name for name in names if name != "params"]  # an optimizer's, which come from the model
