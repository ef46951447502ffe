"""The options that say which model a command takes, with which adapter, and where it computes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeVar

from magnet_train.errors import UserError

if TYPE_CHECKING:
    from magnet_train.pipeline.magnet import Magnet

    AnyMagnet = TypeVar("AnyMagnet", bound=Magnet)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare --model, and what `add_adapter_options` does."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="exported folder, .ckpt of `fit`, model of audiocraft, or hub id",
    )
    add_adapter_options(parser)


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Declare --adapter and --adapter-strength."""
    parser.add_argument(
        "--adapter", metavar="CKPT", help="checkpoint of a LoRA fine-tune to add to the model"
    )
    parser.add_argument(
        "--adapter-strength",
        type=float,
        default=1.0,
        metavar="S",
        help="how much of it: 0 none, 1 as trained (default: 1)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Declare --device."""
    parser.add_argument("--device", help="where to compute: cpu, cuda, ... (default: cuda if there is one)")


def check_adapter(args: argparse.Namespace) -> None:
    """Raise `UserError` for a strength without an adapter; before anything slow is begun."""
    if args.adapter is None and args.adapter_strength != 1:
        raise UserError("--adapter-strength needs --adapter CKPT; name it, or leave the strength out.")


def add_adapter(magnet: Magnet, args: argparse.Namespace) -> None:
    """Add the adapter that was named, if any.

    Raises:
        UserError: It cannot be read or does not fit the model.
    """
    if args.adapter is not None:
        magnet.load_adapter(args.adapter, args.adapter_strength)


def load_model(kind: type[AnyMagnet], args: argparse.Namespace) -> AnyMagnet:
    """Load the model that was named, with its adapter, to where it is to compute.

    Raises:
        UserError: It cannot be read, or the device is not there.
    """
    magnet = kind.from_pretrained(args.model, device=chosen_device(args.device))
    add_adapter(magnet, args)
    return magnet


def chosen_device(name: str | None) -> str:
    """Return the device that was named, else CUDA if there is one, else the CPU."""
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")
