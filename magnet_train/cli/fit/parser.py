"""The parser of `fit`, `validate`, `test` and `predict`: our options, and errors as one sentence.

jsonargparse reports an error as an indented tree: lines `Parser key "..."` spell the key, and the most deeply indented
lines state what was wrong with its value, one line for each type that it may have.
"""

from __future__ import annotations

import difflib
import pkgutil
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import restricted_number_type
from lightning.pytorch.cli import LightningArgumentParser

from magnet_train.cli.fit.resume import Resume
from magnet_train.training.finetune import TrainableParameters

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
Minutes = restricted_number_type("Minutes", float, [(">", 0), ("<=", 1_000_000)])
# Name, type, default and help.
_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    (
        "seed_everything",
        bool | Seed,
        0,
        "seed of the initial weights (true: a random seed); data.seed seeds the data",
    ),
    ("ckpt_path", str | None, None, "checkpoint that `fit` saved, to resume from or to evaluate"),
    ("run", str, "runs/default", "folder of this run: config.yaml, metrics, checkpoints, samples"),
    (
        "global_batch",
        int | None,
        None,
        "clips in a step over all devices; sets trainer.accumulate_grad_batches",
    ),
    (
        "resume",
        Resume,
        "never",
        "how `fit` treats checkpoints in the run's folder: never (refuse a folder that has some), auto (resume from "
        "the newest readable one, if any), required (fail without one)",
    ),
    ("rank_timeout", Minutes, 10.0, "minutes without an answer until a rank counts as dead and the run ends"),
    (
        "init_from",
        str | None,
        None,
        "model whose weights to start from, in any format that `generate` reads; its sizes and text encoder replace "
        "those of the configuration. To continue an interrupted run, add --resume auto",
    ),
)
_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
_UNKNOWN = re.compile(r"Option '(\S+)' is not|does not accept option '(\S+)'|unrecognized arguments: (\S+)")
_REQUIRED = re.compile(r"arguments are required: (.*)")
_VALUE = re.compile(
    r"(?:Got|Given) value: (?!NestedArg|Namespace)(.{0,80})$|: (\S+) does not conform", re.MULTILINE
)
_NO_REASON = re.compile(
    r"[ -]*(Parser key|Does not validate|Subtypes|Errors|Problem with|Subclass types|a class path \(|a dict |"
    r"Expected a path but )"  # where a function or class is expected
)
# The classes that the command line assumes where no configuration names one.
_ANY_DATA, _OUR_MODEL = "lightning.LightningDataModule", "magnet_train.training.module.MagnetModule"


def add_options(parser: LightningArgumentParser) -> None:
    """Add our options, and link what has one source: the run's folder, and the data's clip length, seed and codec."""
    for name, kind, default, text in _OPTIONS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_subclass_arguments(
        TrainableParameters,
        "tuning",
        required=False,
        help="which parameters train, magnet_train.training.finetune.LoRA for example; all by default",
    )
    parser.link_arguments("run", "trainer.default_root_dir")
    parser.link_arguments("data.init_args.segment_duration", "model.init_args.segment_duration")
    parser.link_arguments("data.init_args.seed", "model.init_args.seed")
    parser.link_arguments("data.codec", "model.init_args.codec", apply_on="instantiate")


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
    """Shorten an error message of jsonargparse, given the names of the command's options."""
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
    indents = [len(line) - len(line.lstrip()) for line in lines]
    reasons: list[str] = []
    for line, indent in zip(lines, indents, strict=True):
        if indent == max(indents):
            reason = line.strip(" -").partition(". Got value: ")[0].replace("NoneType", "null")
            reason = re.sub(r"(?:an? )?<class '(?:\w+\.)*(\w+)'>\.?", r"\1", reason)
            reason = re.sub(
                r"Not of type \w+:.* does not conform to restriction", "Expected a number", reason
            )
            reason = re.sub(r"Type \S+\.Callable\[.*\] expects a function or a callable class: ", "", reason)
            reason = re.sub(r"a typing\.Literal\[(.*)\]", r"one of \1", reason)
            reasons.append(reason.removeprefix("Expected ") if reasons else reason)
    return reasons


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
    try:
        kind = pkgutil.resolve_name(class_path)
        # `params` of an optimizer come from the model.
        options: list[str] = ArgumentParser().add_class_arguments(kind, skip={"params"}, fail_untyped=False)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return options
