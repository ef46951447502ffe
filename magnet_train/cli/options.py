"""Requests: dataclasses whose fields are the options of a command, and the options that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from magnet_train.errors import UserError

if TYPE_CHECKING:
    from magnet_train.decoding import DecodingConfig
    from magnet_train.pipeline.magnet import Magnet


def option(help: str, *, group: str | None = None, one_of: str | None = None, **settings: Any) -> Any:
    """Return a field of a request that is the option `--NAME` of its command.

    Args:
        help: For --help, which adds the default.
        group: Title of its section in --help.
        one_of: Name of a set of options of which only one can be given, and must be if they are `required`.
        settings: As for `argparse.ArgumentParser.add_argument`. An int, float or path has its `type` from the field;
            `positional=True` leaves out the dashes.
    """
    if settings.get("default") not in (None, []):
        help += " (default: %(default)s)"
    return field(metadata={"group": group, "one_of": one_of, "settings": {"help": help, **settings}})


flag = partial(option, action="store_true")  # False unless given


def declare(request: type[Any]) -> Callable[[argparse.ArgumentParser], None]:
    """Return a function that adds a request's options to a parser, required ones first; `main` builds the request."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(request=request)
        sections: dict[str | None, Any] = {None: parser}
        types = get_type_hints(request)
        for each in sorted(fields(request), key=lambda each: not each.metadata["settings"].get("required")):
            settings = dict(each.metadata["settings"])
            group, one_of = each.metadata["group"], each.metadata["one_of"]
            if kind := {int, float, Path} & {types[each.name], *get_args(types[each.name])}:
                settings.setdefault("type", kind.pop())
            name = each.name if settings.pop("positional", False) else f"--{each.name}"
            if group and group not in sections:
                sections[group] = parser.add_argument_group(group)
            if one_of:
                required = settings.pop("required", False)
                if one_of not in sections:
                    sections[one_of] = sections[group].add_mutually_exclusive_group(required=required)
            sections[one_of or group].add_argument(name, **settings)

    return add_arguments


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a `type` of argparse for integers in a range."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
        if number < least or (most is not None and number > most):
            wanted = f"at least {least}" if most is None else f"in {least}..{most}"
            raise argparse.ArgumentTypeError(f"{number} is not {wanted}")
        return number

    return read


def numbers(
    kind: type[float], wanted: str, counts: Container[int] | None = None, separator: str = ","
) -> Callable[[str], tuple[float, ...]]:
    """Return a `type` of argparse for several numbers; `wanted` describes them in errors, `counts` is how many."""

    def read(text: str) -> tuple[float, ...]:
        parts = text.split(separator)
        try:
            if counts is not None and len(parts) not in counts:
                raise ValueError
            return tuple(map(kind, parts))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text} should be {wanted}") from error

    return read


@dataclass(frozen=True)
class AdapterOptions:
    """A LoRA adapter, if any; raises `UserError` for a strength without an adapter."""

    adapter: str | None = option("checkpoint of a LoRA fine-tune to add to the model", metavar="CKPT")
    adapter_strength: float = option(
        "strength of the adapter: 0 none, 1 as trained", default=1.0, metavar="S"
    )

    def __post_init__(self) -> None:
        if self.adapter is None and self.adapter_strength != 1:
            raise UserError("--adapter_strength needs --adapter CKPT; give both, or leave the strength out.")

    def add_adapter(self, magnet: Magnet) -> None:
        """Merge the adapter, if any, into a model; raises `UserError` if it cannot be read or does not fit."""
        if self.adapter is not None:
            magnet.load_adapter(self.adapter, self.adapter_strength)


@dataclass(frozen=True)
class DeviceOptions:
    """Where to compute."""

    device: str | None = option("where to compute: cpu, cuda, cuda:1, ... (default: CUDA if available)")

    def chosen_device(self, local_rank: int | None = None) -> str:
        """Return the named device, else CUDA (the GPU of `local_rank`), else the CPU; `UserError` if unusable."""
        import torch

        from magnet_train.models.precision import usable_device

        gpus = torch.cuda.device_count()
        default = "cpu" if not gpus else "cuda" if local_rank is None else f"cuda:{local_rank % gpus}"
        usable_device(device := self.device or default, "--device")
        return device


@dataclass(frozen=True)
class ModelOptions(AdapterOptions, DeviceOptions):
    """A model with its adapter, and where to compute."""

    model: str = option(
        "exported folder, .ckpt of `fit`, audiocraft model, or hub id", required=True, metavar="PATH"
    )
    precision: str = option(
        "number format of the transformer; auto: bfloat16 where the device computes faster with it (on a CPU for models of "
        "dim 256 and more), else float32",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
    )

    compile: bool = flag(
        "compile the transformer first: tens of seconds on a GPU, minutes on a CPU; worth it for many clips"
    )

    def load(self) -> Magnet:
        """Load model and adapter; raises `UserError` if one cannot be read, or the device cannot be used."""
        from magnet_train.pipeline.magnet import Magnet

        magnet = Magnet.from_pretrained(self.model, device=self.chosen_device(), dtype=self.precision)
        self.add_adapter(magnet)
        if self.compile:
            print("compiling ...", flush=True)
            try:
                print(f"compiled in {magnet.compile():.0f} s", flush=True)
            except UserError as error:
                print(f"magnet-train: warning: --compile has no effect: {error}", file=sys.stderr)
        return magnet


sampler_option = partial(option, group="sampler, by default as saved with the model")


@dataclass(frozen=True)
class SamplerOptions:
    """Settings of the decoder, None (or False) for the model's own."""

    steps: tuple[int, ...] | None = sampler_option(
        "decoding steps, one number per codebook",
        one_of="passes",
        type=numbers(int, "whole numbers, like 20,10,10,10"),
        metavar="20,10,10,10",
    )
    quality: Literal["draft", "normal", "best"] | None = sampler_option(
        "decoding steps by the model's step profile (see export --profile), which was measured with the arrangement "
        "spread and is only a guide for the others",
        one_of="passes",
        choices=["draft", "normal", "best"],
    )
    temperature: float | None = sampler_option(
        "sampling temperature at the first step of a codebook", metavar="T"
    )
    constant_temperature: bool | None = sampler_option(
        "keep the temperature, or let it fall to 0 over the steps of a codebook",
        action=argparse.BooleanOptionalAction,
    )
    top_p: float | None = sampler_option(
        "sample from the most probable tokens that together have this probability, 0..1", metavar="P"
    )
    top_k: int | None = sampler_option(
        "sample from the K most probable tokens, instead of --top_p", metavar="K"
    )
    cfg: tuple[float, ...] | None = sampler_option(
        "guidance coefficient at the first and at the last step",
        type=numbers(float, "one number or two, like 10,1", counts=(1, 2)),
        metavar="10,1",
    )
    arrangement: str | None = sampler_option(
        "arrangement of the spans that are masked again", choices=["nonoverlap", "stride1", "spread"]
    )
    scoring: str | None = sampler_option(
        "score of a span: max, its most probable token; prod, the product of all its tokens",
        choices=["max", "prod"],
    )
    greedy: bool = sampler_option("take the most probable token at each position", action="store_true")
    rescorer_weight: float | None = sampler_option(
        "weight of the rescorer's probabilities: 0 none, 1 all (default: as saved, else 0.5)", metavar="W"
    )

    def decoding(self, magnet: Magnet) -> DecodingConfig:
        """Return the model's own settings with the given ones in their place; raises `UserError` if they do not fit."""
        constant, steps = self.constant_temperature, self.steps
        if self.quality is not None:
            steps = magnet.decoding_for(self.quality).decoding_steps
        given = {
            "decoding_steps": steps,
            "temperature": self.temperature,
            "anneal_temperature": None if constant is None else not constant,
            "top_p": 0.0 if self.top_p is None and self.top_k is not None else self.top_p,  # top_p goes first
            "top_k": self.top_k,
            "use_sampling": False if self.greedy else None,
            "max_cfg_coef": self.cfg and self.cfg[0],
            "min_cfg_coef": self.cfg and self.cfg[-1],
            "span_arrangement": self.arrangement,
            "span_scoring": self.scoring,
            "rescorer_weight": self.rescorer_weight,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        decoding = replace(magnet.decoding, **changes)
        decoding.check(magnet.lm.n_q, magnet.lm.card)
        return decoding
