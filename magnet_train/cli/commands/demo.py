"""Try a model on a page in the browser: text to clips side by side, continuing and editing recordings, loops. Nothing
leaves the machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magnet_train import __version__
from magnet_train.cli.model_options import add_device_option, add_model_options, check_adapter, load_model
from magnet_train.errors import require_extra

LARGEST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train demo`."""
    add_model_options(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to answer at; 0.0.0.0 lets everyone in the network use the page (default: 127.0.0.1, this "
        "machine alone)",
    )
    parser.add_argument(
        "--port", type=_port, default=7860, help="port to answer at, 0 for any that is free (default: 7860)"
    )
    parser.add_argument(
        "--auth",
        type=Path,
        metavar="FILE",
        help="ask for a login; the file holds a line NAME:PASSWORD for everyone who may use the page",
    )
    add_device_option(parser)
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")


def run(args: argparse.Namespace) -> None:
    """Load the model and serve the page until Ctrl-C.

    Raises:
        UserError: gradio is not installed, the port is taken, or the model cannot be read.
    """
    require_extra("gradio", "demo", "the page")
    check_adapter(args)
    from magnet_train.apps.demo.server import free_port, private_folder, read_logins, serving

    logins, port = read_logins(args.auth), free_port(args.host, args.port)
    with _orderly_end(), private_folder(args.host) as folder:
        print(f"loading {args.model} ...", flush=True)
        from magnet_train.apps.demo.clip_request import Source
        from magnet_train.apps.demo.guard import is_loopback
        from magnet_train.apps.demo.page import build_page
        from magnet_train.apps.demo.service import ClipService
        from magnet_train.pipeline.magnet import Magnet

        magnet = load_model(Magnet, args)
        _ = magnet.codec, magnet.text  # now, so that what is missing is told at once
        source = Source(
            args.model, magnet.decoding, str(magnet.device), __version__, args.adapter, args.adapter_strength
        )
        # The page tells the visitor.
        warnings.filterwarnings("ignore", message="the model's vocabulary lacks")
        service = ClipService(magnet, source, folder)
        page = build_page(service, _name(args))
        with serving(page, args.host, port, folder, logins, args.open) as address:
            print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
            if not is_loopback(args.host):
                who = (
                    "who has a login, and passwords are sent in the clear" if logins else "without a password"
                )
                print(f"everyone who can reach this address can use it, {who}", flush=True)
            try:
                threading.Event().wait()
            finally:
                service.close()


def _name(args: argparse.Namespace) -> str:
    """Call a model by its folder, a checkpoint by its run and its own name, and one of the hub by its id."""
    path = Path(args.model)
    if not path.exists():
        return str(args.model)
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.is_file() else path.name


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let what is temporary be removed also when a signal ends the process, which by default it would not."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error
    if not 0 <= port <= LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{port} is not in 0..{LARGEST_PORT}")
    return port
