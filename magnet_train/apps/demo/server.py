"""Start gradio's own server for a page: at this machine alone unless told otherwise, private and offline."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.errors import UserError

if TYPE_CHECKING:
    import gradio

LONGEST_QUEUE = 16  # requests that wait; more would wait too long to be of use
MOST_SESSIONS = 500  # that are remembered


def free_port(host: str, port: int) -> int:
    """Find out whether the page can have a port, before anything slow is begun.

    Args:
        host: Name or number of the interface.
        port: 0 for any that is free.

    Raises:
        UserError: The port is taken or not allowed, or the host is not an address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise UserError(f"--host {host} cannot be found ({error.strerror}); try 127.0.0.1.") from error
    except OSError as error:
        raise _port_taken(host, port, error.strerror) from error


def read_logins(path: Path | None) -> list[tuple[str, str]] | None:
    """Read who may use the page: a line NAME:PASSWORD each.

    Raises:
        UserError: The file cannot be read, or a line lacks a name or a password.
    """
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--auth {path} cannot be read as text; give a file of lines NAME:PASSWORD."
        ) from error
    logins = [
        (name, password) for name, _, password in (line.partition(":") for line in lines if line.strip())
    ]
    if not logins or not all(name and password for name, password in logins):
        raise UserError(f"--auth {path} should hold lines NAME:PASSWORD, at least one and nothing else.")
    return logins


@contextmanager
def private_folder(host: str) -> Iterator[Path]:
    """Give gradio a folder of its own for uploads and clips, and remove it at the end.

    gradio takes settings from the environment, some when it is imported; whatever is there could share the page or
    serve more files, and a proxy would be asked for the page itself.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="magnet-train-demo-", ignore_cleanup_errors=True) as made:
        folder = os.path.realpath(made)  # as gradio names its files
        for name in before:
            if name.startswith("GRADIO_"):
                del os.environ[name]
        direct = ",".join(filter(None, [before.get("no_proxy") or before.get("NO_PROXY"), "localhost", host]))
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": direct,
            "NO_PROXY": direct,
        }
        try:
            yield Path(folder)
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def serving(
    page: gradio.Blocks,
    host: str,
    port: int,
    folder: Path,
    logins: list[tuple[str, str]] | None = None,
    open_browser: bool = False,
) -> Iterator[str]:
    """Serve a page.

    Args:
        page: What to show.
        host: Interface to answer at.
        port: From `free_port`.
        folder: From `private_folder`.
        logins: Who may use it, with their passwords; everyone when None.
        open_browser: Show the page to the person at this machine.

    Yields:
        Its address.

    Raises:
        UserError: Another process took the port meanwhile.
    """
    from starlette.middleware import Middleware

    from magnet_train.apps.demo.guard import LARGEST_FILE, Guard
    from magnet_train.apps.demo.page import STYLE, theme

    page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=1, api_open=False)
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            auth=logins,
            inbrowser=open_browser,
            share=False,
            allowed_paths=[],  # uploads and clips are served without being named here
            max_file_size=LARGEST_FILE,
            state_session_capacity=MOST_SESSIONS,
            show_error=False,  # what is not meant for visitors stays in the terminal
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            theme=theme(),
            css=STYLE,
            app_kwargs={"openapi_url": None, "middleware": [Middleware(Guard, host=host, folder=folder)]},
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise _port_taken(host, port, None) from error
    try:
        yield str(page.local_url).rstrip("/")
    finally:
        # A page that is open never ends its requests by itself, and that they are cut short is not an error.
        page.server.force_exit = True
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        page.close(verbose=False)


def _port_taken(host: str, port: int, reason: str | None) -> UserError:
    return UserError(
        f"port {port} of {host} cannot be used ({reason or 'taken'}); choose another --port, or 0 for a free one."
    )
