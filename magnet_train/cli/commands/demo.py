"""Serve a model on a page in the browser: compare clips of a caption, continue and edit recordings, make loops.

Nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from magnet_train.cli.options import ModelOptions, declare, flag, option, whole_number
from magnet_train.errors import require_extra


@dataclass(frozen=True)
class DemoRequest(ModelOptions):
    """The options of `demo`."""

    host: str = option(
        "address to listen on; 0.0.0.0 opens the page to the whole network", default="127.0.0.1"
    )
    port: int = option("port to listen on, 0 for any free one", type=whole_number(0, 65535), default=7860)
    auth: Path | None = option(
        "require a login; FILE has a line NAME:PASSWORD for each user", type=Path, metavar="FILE"
    )
    open: bool = flag("open the page in this machine's browser")

    @property
    def title(self) -> str:
        """The model's folder, a checkpoint's run and name, or a hub id."""
        path = Path(self.model)
        if not path.exists():
            return self.model
        path = path.resolve()
        return f"{path.parent.name}/{path.name}" if path.is_file() else path.name


add_arguments = declare(DemoRequest)


def run(args: argparse.Namespace) -> None:
    """Load the model and serve the page until Ctrl-C.

    Raises:
        UserError: gradio is not installed, the port is taken, or the model cannot be read.
    """
    require_extra("gradio", "demo", "the page")
    request = DemoRequest(**vars(args))
    from magnet_train.apps.demo.server import free_port, private_folder, read_logins, serving

    logins, port = read_logins(request.auth), free_port(request.host, request.port)
    with _exit_on_sigterm(), private_folder(request.host) as folder:
        print(f"loading {request.model} ...", flush=True)
        from magnet_train.apps.demo.guard import is_loopback
        from magnet_train.apps.demo.page import build_page
        from magnet_train.apps.demo.service import ClipService, ModelSource
        from magnet_train.pipeline.magnet import Magnet

        magnet = request.load(Magnet)
        _ = magnet.codec, magnet.text  # now, so that a missing one is reported at once
        adapter, strength = request.adapter, request.adapter_strength
        precision = str(magnet.dtype).removeprefix("torch.")
        source = ModelSource(request.model, str(magnet.device), precision, adapter, strength)
        # The page shows it to the visitor.
        warnings.filterwarnings("ignore", message="the model's vocabulary lacks")
        service = ClipService(magnet, source, folder)
        page = build_page(service, request.title)
        with serving(page, request.host, port, folder, logins, request.open) as address:
            print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
            if not is_loopback(request.host):
                who = (
                    "who has a login, and passwords are sent in the clear" if logins else "without a password"
                )
                print(f"everyone who can reach this address can use it, {who}", flush=True)
            try:
                threading.Event().wait()
            finally:
                service.close()


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Leave by an exception on SIGTERM, so that temporary files are removed."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
