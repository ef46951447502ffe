"""Requests: dataclasses whose fields are the options of a command, and the options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from magnet_train.errors import UserError, first_line

if TYPE_CHECKING:
    from magnet_train.decoding import DecodingConfig
    from magnet_train.pipeline.magnet import Magnet

    AnyMagnet = TypeVar("AnyMagnet", bound=Magnet)


def option(help: str, *, group: str | None = None, one_of: str | None = None, **settings: Any) -> Any:
    """Return a field of a request that is the option `--NAME` of its command.

    Args:
        help: For --help, which adds the default.
        group: Title of its section in --help.
        one_of: Name of a set of options of which only one can be given, and must be if they are `required`.
        settings: As for `argparse.ArgumentParser.add_argument`; `positional=True` leaves out the dashes.
    """
    if settings.get("default") not in (None, []):
        help += " (default: %(default)s)"
    return field(metadata={"group": group, "one_of": one_of, "settings": {"help": help, **settings}})


def flag(help: str) -> Any:
    """Return a field of a request that is True if the option is given."""
    return option(help, action="store_true")


def declare(request: type[Any]) -> Callable[[argparse.ArgumentParser], None]:
    """Return the function that adds the options of a request to a parser, required ones first."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        sections: dict[str, Any] = {}
        for each in sorted(fields(request), key=lambda each: not each.metadata["settings"].get("required")):
            settings, section = dict(each.metadata["settings"]), parser
            name = each.name if settings.pop("positional", False) else f"--{each.name}"
            if title := each.metadata["group"]:
                if title not in sections:
                    sections[title] = parser.add_argument_group(title)
                section = sections[title]
            elif (alternatives := each.metadata["one_of"]) is not None:
                required = settings.pop("required", False)
                if alternatives not in sections:
                    sections[alternatives] = parser.add_mutually_exclusive_group(required=required)
                section = sections[alternatives]
            section.add_argument(name, **settings)

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


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} should be whole numbers, like 20,10,10,10") from error


def _one_or_two(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} should be one number or two, like 10,1") from error
    if len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"{text} holds more than two numbers")
    return numbers


@dataclass(frozen=True)
class AdapterOptions:
    """A LoRA adapter, if any.

    Raises:
        UserError: A strength without an adapter.
    """

    adapter: str | None = option("checkpoint of a LoRA fine-tune to add to the model", metavar="CKPT")
    adapter_strength: float = option(
        "strength of the adapter: 0 none, 1 as trained", type=float, default=1.0, metavar="S"
    )

    def __post_init__(self) -> None:
        if self.adapter is None and self.adapter_strength != 1:
            raise UserError("--adapter_strength needs --adapter CKPT; give both, or leave the strength out.")

    def add_adapter(self, magnet: Magnet) -> None:
        """Merge the adapter, if any, into a model.

        Raises:
            UserError: It cannot be read or does not fit the model.
        """
        if self.adapter is not None:
            magnet.load_adapter(self.adapter, self.adapter_strength)


@dataclass(frozen=True)
class DeviceOptions:
    """Where to compute."""

    device: str | None = option("where to compute: cpu, cuda, cuda:1, ... (default: CUDA if available)")

    def chosen_device(self, local_rank: int | None = None) -> str:
        """Return the named device, else CUDA if available, else the CPU.

        Args:
            local_rank: The process's number on this machine, which then picks its GPU.

        Raises:
            UserError: The device cannot be used.
        """
        import torch

        gpus = torch.cuda.device_count()
        default = "cpu" if not gpus else "cuda" if local_rank is None else f"cuda:{local_rank % gpus}"
        device = self.device or default
        try:
            torch.empty(0, device=device)
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # torch raises the latter where it was built without CUDA
            raise UserError(
                f"--device {device} cannot be used ({first_line(error)}); choose cpu or cuda."
            ) from error
        return device


@dataclass(frozen=True)
class ModelOptions(AdapterOptions, DeviceOptions):
    """A model with its adapter, and where to compute."""

    model: str = option(
        "exported folder, .ckpt of `fit`, audiocraft model, or hub id", required=True, metavar="PATH"
    )
    precision: str = option(
        "what the transformer computes in; auto: bfloat16 where the device multiplies it faster, on a CPU for models of "
        "dim 256 or more, else float32",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
    )

    def load(self, kind: type[AnyMagnet]) -> AnyMagnet:
        """Load the model with its adapter.

        Raises:
            UserError: It cannot be read, or the device cannot be used, or not in this precision.
        """
        magnet = kind.from_pretrained(self.model, device=self.chosen_device(), dtype=self.precision)
        self.add_adapter(magnet)
        return magnet


def sampler_option(help: str, **settings: Any) -> Any:
    """Return an option in the section of the sampler."""
    return option(help, group="sampler, by default as saved with the model", **settings)


@dataclass(frozen=True)
class SamplerOptions:
    """Settings of the decoder, None (or False) for the model's own."""

    steps: tuple[int, ...] | None = sampler_option(
        "decoding steps, one number per codebook", type=_integers, metavar="20,10,10,10"
    )
    temperature: float | None = sampler_option(
        "sampling temperature at the first step of a codebook", type=float, metavar="T"
    )
    constant_temperature: bool | None = sampler_option(
        "keep the temperature, or let it fall to 0 over the steps of a codebook",
        action=argparse.BooleanOptionalAction,
    )
    top_p: float | None = sampler_option(
        "sample from this share of the probability, 0..1", type=float, metavar="P"
    )
    top_k: int | None = sampler_option(
        "sample from the K most probable tokens instead", type=int, metavar="K"
    )
    cfg: tuple[float, ...] | None = sampler_option(
        "guidance coefficient at the first and at the last step", type=_one_or_two, metavar="10,1"
    )
    arrangement: str | None = sampler_option(
        "arrangement of the spans that are masked again", choices=["nonoverlap", "stride1", "spread"]
    )
    scoring: str | None = sampler_option(
        "score of a span: its best token, or the product of all", choices=["max", "prod"]
    )
    greedy: bool = sampler_option("take the most probable token at each position", action="store_true")
    rescorer_weight: float | None = sampler_option(
        "weight of the rescorer's probabilities: 0 none, 1 all (default: as saved, else 0.5)",
        type=float,
        metavar="W",
    )

    def decoding(self, magnet: Magnet) -> DecodingConfig:
        """Return the model's own settings with the given ones in their place.

        Raises:
            UserError: They do not fit the model.
        """
        given: dict[str, Any] = {
            "decoding_steps": self.steps,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "span_arrangement": self.arrangement,
            "span_scoring": self.scoring,
            "rescorer_weight": self.rescorer_weight,
        }
        if self.constant_temperature is not None:
            given["anneal_temperature"] = not self.constant_temperature
        if self.greedy:
            given["use_sampling"] = False
        if self.cfg is not None:
            given["max_cfg_coef"], given["min_cfg_coef"] = self.cfg[0], self.cfg[-1]
        if self.top_k is not None and self.top_p is None:
            given["top_p"] = 0.0  # top_p goes first, so --top_k alone would have no effect
        decoding = replace(
            magnet.decoding, **{name: value for name, value in given.items() if value is not None}
        )
        decoding.check(magnet.lm.n_q, magnet.lm.card)
        return decoding
