"""Serve a model on a page in the browser: compare clips of a caption, continue and edit recordings, make loops.

Nothing leaves the machine.
"""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from magnet_train.cli.console import on_signal
from magnet_train.cli.options import ModelOptions, declare, flag, option, whole_number
from magnet_train.errors import require_extra


@dataclass(frozen=True)
class DemoRequest(ModelOptions):
    """The options of `demo`."""

    host: str = option(
        "address to listen on; 0.0.0.0 opens the page to the whole network", default="127.0.0.1"
    )
    port: int = option("port to listen on, 0 for any free one", type=whole_number(0, 65535), default=7860)
    auth: Path | None = option("require a login; FILE has a line NAME:PASSWORD for each user", metavar="FILE")
    open: bool = flag("open the page in this machine's browser")

    @property
    def title(self) -> str:
        """The model's folder, a checkpoint's run and name, or a hub id."""
        path = Path(self.model)
        if not path.exists():
            return self.model
        # last.ckpt is a link, and keeps its name
        folder = path.resolve() if path.is_dir() else path.parent.resolve()
        return folder.name if path.is_dir() else f"{folder.name}/{path.name}"


add_arguments = declare(DemoRequest)


def run(request: DemoRequest) -> None:
    """Serve the page until Ctrl-C; raises `UserError` without gradio, a free port or a model that can be read."""
    require_extra("gradio", "demo", "the page")
    from magnet_train.apps.demo.server import free_port, private_folder, read_logins, serving

    logins, port = read_logins(request.auth), free_port(request.host, request.port)
    # SIGTERM ends the process by an exception, so that temporary files are removed.
    with (
        on_signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number)),
        private_folder(request.host) as folder,
    ):
        print(f"loading {request.model} ...", flush=True)
        from magnet_train.apps.demo.guard import is_loopback
        from magnet_train.apps.demo.page import build_page
        from magnet_train.apps.demo.service import ClipService, ModelSource
        from magnet_train.models.precision import dtype_name

        magnet = request.load()
        _ = magnet.codec, magnet.text  # now, so that a missing one is reported at once
        precision = dtype_name(magnet.dtype)
        source = ModelSource(
            request.model, str(magnet.device), precision, request.adapter, request.adapter_strength
        )
        # The page shows it to the visitor.
        warnings.filterwarnings("ignore", message="the model's vocabulary lacks")
        service = ClipService(magnet, source, folder)
        page = build_page(service, request.title)
        with serving(page, request.host, port, folder, logins, request.open) as address:
            print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
            if not is_loopback(request.host):
                login = (
                    "with a login, and passwords are sent in the clear" if logins else "without a password"
                )
                print(f"everyone who can reach this address can use it, {login}", flush=True)
            try:
                threading.Event().wait()
            finally:
                service.close()
