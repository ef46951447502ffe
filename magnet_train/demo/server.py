"""Serve the page, to this machine alone if not told otherwise, and keep it from talking to any other.

gradio's own `launch` is not used: it looks for another port when one is taken, opens tunnels if asked, and
asks the network whether it can be reached.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from magnet_train.errors import UserError

if TYPE_CHECKING:
    import gradio

UPLOAD_LIMIT = "100mb"
GRACE_SECONDS = 1  # for requests at work when the server is stopped; a page that is open never ends by itself
# Nothing is loaded from, or sent to, another host, whatever a library's page would like to.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
# What the page asks for. gradio has more, such as fetching any address for whoever asks, which nobody needs here.
API = "/gradio_api"
OPEN_PATHS = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"} | {
    f"{API}/{name}"
    for name in (
        "info",
        "startup-events",
        "queue/join",
        "queue/data",
        "cancel",
        "reset",
        "upload",
        "upload_progress",
    )
}
OPEN_FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/", f"{API}/run/")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def bind(host: str, port: int) -> socket.socket:
    """Take the port, before anything slow is begun.

    Args:
        host: Name or number of the interface.
        port: 0 for any that is free.

    Raises:
        UserError: The port is taken or not allowed, or the host is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UserError(f"--host {host} cannot be found ({error.strerror}); try 127.0.0.1.") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(
            f"port {port} of {host} cannot be used ({error.strerror}); choose another --port, or 0 for a free one."
        ) from error
    return listening


def address_of(listening: socket.socket, host: str) -> str:
    """Return what to type into a browser."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{listening.getsockname()[1]}"


@contextmanager
def private_folder() -> Iterator[str]:
    """Give gradio a folder of its own for uploads and clips, and remove it at the end; it reads this when imported."""
    with tempfile.TemporaryDirectory(prefix="magnet-train-demo-") as made:
        folder = os.path.realpath(made)  # as gradio names its files
        settings = {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ |= settings
        try:
            yield folder
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def serve(page: gradio.Blocks, listening: socket.socket, host: str, folder: str, open_browser: bool) -> None:
    """Answer until Ctrl-C.

    Args:
        page: What to show.
        listening: Where.
        host: As given to --host; on a loopback address only browsers of this machine are answered.
        folder: Uploads and clips, the only files that are served.
        open_browser: Show the page to the person at this machine.
    """
    import fastapi
    import gradio as gr
    import uvicorn

    from magnet_train.demo.page import STYLE, theme

    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="/",
        server_name=host,
        server_port=listening.getsockname()[1],
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=UPLOAD_LIMIT,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css=STYLE,
    )
    config = uvicorn.Config(
        Guard(app, is_loopback(host), folder),
        log_level="warning",
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        ws="none",
    )
    if open_browser:
        # The socket listens already, so the browser waits for the answer; one of the terminal would not return.
        threading.Thread(target=webbrowser.open, args=[address_of(listening, host)], daemon=True).start()
    server = uvicorn.Server(config)
    server.shutdown = _quietly(server.shutdown)
    server.run(sockets=[listening])


def _quietly(shutdown: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Say nothing of what a shutdown cuts short: an open page always has a request at work."""

    async def shutdown_quietly(*arguments: Any, **names: Any) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await shutdown(*arguments, **names)

    return shutdown_quietly


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine as seen by itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Answer the page's own requests alone, and tell browsers to load nothing from elsewhere.

    A website that somebody happens to look at can make their browser send requests to this machine, also under
    a name of its own that it lets point here; both carry another name than the page's.

    Args:
        app: What is guarded.
        local: Whether only this machine is to be answered.
        folder: Whose files may be asked for.
    """

    def __init__(self, app: App, local: bool, folder: str) -> None:
        self.app, self.local, self.files = app, local, f"{API}/file={folder}/"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer an ASGI request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self.local and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            await _refuse(
                send, 403, f"This page answers to 127.0.0.1 and localhost, not to {host}; see --host."
            )
        elif origin is not None and urlsplit(origin).netloc != host:
            await _refuse(send, 403, f"This page does not answer to {origin}.")
        elif scope["path"] not in OPEN_PATHS and not scope["path"].startswith((*OPEN_FOLDERS, self.files)):
            await _refuse(send, 404, "There is nothing here.")
        else:
            await self.app(scope, receive, _with_policy(send))


def _with_policy(send: Send) -> Send:
    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", []),
                (b"content-security-policy", CONTENT_POLICY.encode()),
                (b"referrer-policy", b"no-referrer"),
                (b"x-content-type-options", b"nosniff"),
            ]
        await send(message)

    return send_with_policy


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = sentence.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
