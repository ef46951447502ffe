"""Try a model on a page in the browser: clips from text, continued and edited recordings, loops. Nothing leaves the
machine.
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

from magnet_train.cli.model_options import add_device_option, add_model_options, check_adapter, load_model
from magnet_train.errors import require_extra

MAX_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train demo`."""
    add_model_options(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 opens the page to the whole network (default: 127.0.0.1, this machine "
        "only)",
    )
    parser.add_argument(
        "--port", type=_port, default=7860, help="port to listen on, 0 for any free one (default: 7860)"
    )
    parser.add_argument(
        "--auth",
        type=Path,
        metavar="FILE",
        help="require a login; FILE has a line NAME:PASSWORD for each user",
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
    with _exit_on_sigterm(), private_folder(args.host) as folder:
        print(f"loading {args.model} ...", flush=True)
        # gradio reads its settings from the environment when it is imported, so not before `private_folder`.
        from magnet_train.apps.demo.page import build_page
        from magnet_train.apps.demo.service import ClipService, ModelSource
        from magnet_train.pipeline.magnet import Magnet

        magnet = load_model(Magnet, args)
        _ = magnet.codec, magnet.text  # loaded now, so that a missing file is reported before the page opens
        warnings.filterwarnings("ignore", message="the model's vocabulary lacks")  # the page shows it
        source = ModelSource(args.model, str(magnet.device), args.adapter, args.adapter_strength)
        service = ClipService(magnet, source, folder)
        page = build_page(service, _name(args.model))
        with serving(page, args.host, port, folder, logins, args.open) as url:
            print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
            _warn_if_open(args.host, logins is not None)
            try:
                threading.Event().wait()
            finally:
                service.close()


def _warn_if_open(host: str, has_logins: bool) -> None:
    from magnet_train.apps.demo.guard import is_loopback

    if not is_loopback(host):
        who = "who has a login, and passwords are sent in the clear" if has_logins else "without a password"
        print(f"everyone who can reach this address can use it, {who}", flush=True)


def _name(model: str) -> str:
    """Return a folder's name, the last two parts of a checkpoint's path, or a hub id."""
    path = Path(model)
    if not path.exists():
        return model
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.is_file() else path.name


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Exit through the `finally` blocks on SIGTERM, so that temporary files are removed."""

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
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
    if not 0 <= port <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{port} is not in 0..{MAX_PORT}")
    return port
