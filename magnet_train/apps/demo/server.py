"""Run gradio's server for the page: on the loopback interface by default, private and offline."""

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
from magnet_train.storage.plain_text import lines_of, read_text

if TYPE_CHECKING:
    import gradio

MAX_QUEUE = 16  # requests that wait
MAX_SESSIONS = 500  # whose state is kept
_MOST_LOGINS = 2**20  # bytes of the file
# Of gradio's launch, set whatever its defaults become. `show_error` would send tracebacks to visitors.
OFF = ("share", "show_error", "run_history", "enable_monitoring", "mcp_server", "ssr_mode", "pwa")


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0, after checking that it can be bound; called before the model is loaded.

    Raises:
        UserError: The port is taken or not permitted, or the host is not an address of this machine.
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
        raise _port_error(host, port, error.strerror) from error


def _port_error(host: str, port: int, reason: str | None) -> UserError:
    return UserError(
        f"port {port} of {host} cannot be used ({reason or 'taken'}); choose another --port, or 0 for a free one."
    )


def read_logins(path: Path | None) -> list[tuple[str, str]] | None:
    """Read a file of lines NAME:PASSWORD; raises `UserError` if it cannot be read or a line lacks one of the two."""
    if path is None:
        return None
    try:
        lines = lines_of(read_text(path, _MOST_LOGINS))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--auth {path} cannot be read as text; give a file of lines NAME:PASSWORD."
        ) from error
    parts = [line.partition(":") for line in lines if line.strip()]
    logins = [(name, password) for name, _, password in parts]
    if not logins or not all(name and password for name, password in logins):
        raise UserError(f"--auth {path} should hold lines NAME:PASSWORD, at least one and nothing else.")
    return logins


@contextmanager
def private_folder(host: str) -> Iterator[Path]:
    """Make the folder of uploads and clips, removed at the end, and shield gradio from the environment.

    gradio reads GRADIO_* variables, some of them when it is imported; they could share the page or serve more files.
    Requests to the page itself must not go through a proxy.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="magnet-train-demo-", ignore_cleanup_errors=True) as made:
        folder = os.path.realpath(made)  # gradio's names for its files are resolved as well
        for name in before:
            if name.startswith("GRADIO_"):
                del os.environ[name]
        direct = ",".join(filter(None, [before.get("no_proxy") or before.get("NO_PROXY"), "localhost", host]))
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": direct, "NO_PROXY": direct}
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
    """Serve a page on the interface `host` and yield its URL.

    The port is from `free_port`, the folder from `private_folder`. Without logins, everyone can use the page.

    Raises:
        UserError: Another process took the port meanwhile.
    """
    from starlette.middleware import Middleware

    from magnet_train.apps.demo.guard import MAX_FILE, Guard
    from magnet_train.apps.demo.page import STYLE, theme

    page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1, api_open=False)
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            auth=logins,
            inbrowser=open_browser,
            allowed_paths=[],  # uploads and clips are served in any case
            max_file_size=MAX_FILE,
            state_session_capacity=MAX_SESSIONS,
            footer_links=[],
            theme=theme(),
            css=STYLE,
            app_kwargs={"openapi_url": None, "middleware": [Middleware(Guard, host=host, folder=folder)]},
            prevent_thread_lock=True,
            quiet=True,
            **dict.fromkeys(OFF, False),
        )
    except OSError as error:
        raise _port_error(host, port, None) from error
    try:
        yield str(page.local_url).rstrip("/")
    finally:
        # An open page keeps its requests open for ever; cutting them short is not worth an error message.
        page.server.force_exit = True
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        page.close(verbose=False)
