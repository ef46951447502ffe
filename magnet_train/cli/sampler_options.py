"""The options that change how a model samples: for the clips of `generate`, and for what `export` stores."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magnet_train.decoding import DecodingConfig


def add_sampler_options(parser: argparse.ArgumentParser) -> Any:
    """Declare them; return their group, for more that belong there."""
    sampler = parser.add_argument_group("sampler", "what is left out is as the model was saved")
    sampler.add_argument(
        "--steps", type=_integers, metavar="20,10,10,10", help="decoding steps, one number per codebook"
    )
    sampler.add_argument(
        "--temperature", type=float, metavar="T", help="randomness at the start of each codebook"
    )
    sampler.add_argument(
        "--constant_temperature",
        action=argparse.BooleanOptionalAction,
        help="let it stay, or let it fall to 0 over the steps of a codebook",
    )
    sampler.add_argument(
        "--top_p", type=float, metavar="P", help="sample from this share of the probability, 0..1"
    )
    sampler.add_argument(
        "--top_k", type=int, metavar="K", help="sample from the K most probable tokens instead"
    )
    sampler.add_argument(
        "--cfg", type=_floats, metavar="10,1", help="guidance while all is masked, and at the end"
    )
    sampler.add_argument(
        "--arrangement",
        choices=["nonoverlap", "stride1", "spread"],
        help="how spans are laid when masking again",
    )
    sampler.add_argument(
        "--scoring", choices=["max", "prod"], help="how a span is judged: best token, or all of them"
    )
    sampler.add_argument(
        "--rescorer_weight",
        type=float,
        metavar="W",
        help="share of a rescorer in the choice of what is made again: 0 none, 1 all (default: as saved, else 0.5)",
    )
    sampler.add_argument("--greedy", action="store_true", help="take the most probable token each time")
    return sampler


def chosen_decoding(default: DecodingConfig, args: argparse.Namespace) -> DecodingConfig:
    """Put the options that were given over the model's own settings."""
    given: dict[str, Any] = {
        "decoding_steps": args.steps,
        "temperature": args.temperature,
        "anneal_temperature": None if args.constant_temperature is None else not args.constant_temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "span_arrangement": args.arrangement,
        "span_scoring": args.scoring,
        "rescorer_weight": args.rescorer_weight,
        "use_sampling": False if args.greedy else None,
    }
    if args.cfg is not None:
        given["max_cfg_coef"], given["min_cfg_coef"] = args.cfg[0], args.cfg[-1]
    if args.top_k is not None and args.top_p is None:
        given["top_p"] = 0.0  # top_p goes first, so --top_k alone would do nothing
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} should be whole numbers, like 20,10,10,10") from error


def _floats(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} should be one number or two, like 10,1") from error
    if len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"{text} holds more than two numbers")
    return numbers
