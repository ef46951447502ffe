"""Options that several commands share: which model, where it computes, and how it samples."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from magnet_train.errors import UserError, first_line

if TYPE_CHECKING:
    from magnet_train.decoding import DecodingConfig
    from magnet_train.pipeline.magnet import Magnet

    AnyMagnet = TypeVar("AnyMagnet", bound=Magnet)


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


@dataclass(frozen=True)
class AdapterOptions:
    """A LoRA adapter, None for none, and its strength: 0 nothing, 1 as trained.

    Raises:
        UserError: A strength without an adapter.
    """

    adapter: str | None
    adapter_strength: float

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
class ModelOptions(AdapterOptions):
    """A model, its adapter, and where to compute."""

    model: str
    device: str | None

    def load(self, kind: type[AnyMagnet]) -> AnyMagnet:
        """Load the model with its adapter.

        Raises:
            UserError: It cannot be read, or the device cannot be used.
        """
        magnet = kind.from_pretrained(self.model, device=chosen_device(self.device))
        self.add_adapter(magnet)
        return magnet


@dataclass(frozen=True)
class SamplerOptions:
    """Settings of the decoder, each None (or False) to keep the model's own."""

    steps: tuple[int, ...] | None
    temperature: float | None
    constant_temperature: bool | None
    top_p: float | None
    top_k: int | None
    cfg: tuple[float, ...] | None
    arrangement: str | None
    scoring: str | None
    rescorer_weight: float | None
    greedy: bool

    def decoding(self, magnet: Magnet) -> DecodingConfig:
        """Return the model's own settings with the given ones in their place.

        Raises:
            UserError: They do not fit the model.
        """
        given: dict[str, Any] = {
            "decoding_steps": self.steps,
            "temperature": self.temperature,
            "anneal_temperature": None
            if self.constant_temperature is None
            else not self.constant_temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "span_arrangement": self.arrangement,
            "span_scoring": self.scoring,
            "rescorer_weight": self.rescorer_weight,
            "use_sampling": False if self.greedy else None,
        }
        if self.cfg is not None:
            given["max_cfg_coef"], given["min_cfg_coef"] = self.cfg[0], self.cfg[-1]
        if self.top_k is not None and self.top_p is None:
            given["top_p"] = 0.0  # top_p goes first, so --top_k alone would have no effect
        decoding = replace(
            magnet.decoding, **{name: value for name, value in given.items() if value is not None}
        )
        decoding.check(magnet.lm.n_q, magnet.lm.card)
        return decoding


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare `ModelOptions`."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="exported folder, .ckpt of `fit`, audiocraft model, or hub id",
    )
    add_adapter_options(parser)
    add_device_option(parser)


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Declare `AdapterOptions`."""
    parser.add_argument(
        "--adapter", metavar="CKPT", help="checkpoint of a LoRA fine-tune to add to the model"
    )
    parser.add_argument(
        "--adapter_strength",
        type=float,
        default=1.0,
        metavar="S",
        help="strength of the adapter: 0 none, 1 as trained (default: 1)",
    )


def add_device_option(parser: argparse.ArgumentParser, default: str = "CUDA if available") -> None:
    """Declare --device."""
    parser.add_argument("--device", help=f"where to compute: cpu, cuda, cuda:1, ... (default: {default})")


def add_sampler_options(parser: argparse.ArgumentParser) -> Any:
    """Declare `SamplerOptions` and return their group."""
    group = parser.add_argument_group("sampler", "default: the settings saved with the model")
    add = group.add_argument
    add("--steps", type=_integers, metavar="20,10,10,10", help="decoding steps, one number per codebook")
    add("--temperature", type=float, metavar="T", help="sampling temperature at the first step of a codebook")
    add(
        "--constant_temperature",
        action=argparse.BooleanOptionalAction,
        help="keep the temperature, or let it fall to 0 over the steps of a codebook",
    )
    add("--top_p", type=float, metavar="P", help="sample from this share of the probability, 0..1")
    add("--top_k", type=int, metavar="K", help="sample from the K most probable tokens instead")
    add("--cfg", type=_floats, metavar="10,1", help="guidance coefficient at the first and at the last step")
    add(
        "--arrangement",
        choices=["nonoverlap", "stride1", "spread"],
        help="arrangement of the spans that are masked again",
    )
    add("--scoring", choices=["max", "prod"], help="score of a span: its best token, or the product of all")
    add(
        "--rescorer_weight",
        type=float,
        metavar="W",
        help="weight of the rescorer's probabilities: 0 none, 1 all (default: as saved, else 0.5)",
    )
    add("--greedy", action="store_true", help="take the most probable token at each position")
    return group


def chosen_device(name: str | None, local_rank: int | None = None) -> str:
    """Return the named device, else CUDA if available, else the CPU.

    Args:
        name: As given with --device.
        local_rank: The process's number on this machine, which then picks its GPU.

    Raises:
        UserError: The device cannot be used.
    """
    import torch

    gpus = torch.cuda.device_count()
    default = "cpu" if not gpus else "cuda" if local_rank is None else f"cuda:{local_rank % gpus}"
    try:
        torch.empty(0, device=name or default)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        raise UserError(
            f"--device {name or default} cannot be used ({first_line(error)}); choose cpu or cuda."
        ) from error
    return name or default


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
