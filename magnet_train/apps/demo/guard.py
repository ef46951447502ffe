"""Refuse requests that gradio would accept and the page never sends.

gradio checks paths, file sizes and sessions. But it answers under any host name that points to this machine and, outside
of localhost, accepts requests from other sites' pages; it fetches any URL for a client, reads messages of any length and
accepts uploads until the disk is full.
"""

from __future__ import annotations

import ipaddress
import logging
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_FILE = 100 * 2**20  # bytes of a recording
MAX_UPLOAD = MAX_FILE + 2**20  # with its multipart headers
MAX_MESSAGE = 2**18  # bytes of any other request body; a form takes a few kB
MIN_FREE = 2**30  # bytes of the disk that uploads leave free

API = "/gradio_api"
UPLOAD = f"{API}/upload"
# All that the page requests.
PATHS = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/login", "/logout"}
PATHS |= {
    f"{API}/{name}" for name in ("info", "startup-events", "cancel", "reset", "upload", "upload_progress")
}
PATHS |= {f"{API}/queue/join", f"{API}/queue/data"}
FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/", f"{API}/run/")
HEADERS = {
    # The browser loads nothing from other hosts and sends nothing to them.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware that checks host, origin, path and size of a request to gradio, and sets security headers.

    A loopback `host` is served under loopback names alone; `folder`, of uploads and clips, holds all files served.
    """

    def __init__(self, app: ASGIApp, host: str, folder: Path) -> None:
        self.app, self.loopback, self.folder = app, is_loopback(host), folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        app = self.app if refusal is None else PlainTextResponse(refusal[1], refusal[0])
        try:
            await app(scope, receive, send_with_headers)
        except Exception as error:  # malformed content that gradio's own handlers do not expect
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            _log.warning("a request for %.100r failed (%s)", scope["path"], reason)
            if not started:
                await PlainTextResponse("This request cannot be read.", 400)(
                    scope, receive, send_with_headers
                )

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the sentence of a refusal, or None."""
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", ""), headers.get("origin")
        # Another site's page can make a visitor's browser send requests, also under a name that resolves to here.
        if self.loopback and not is_loopback(_hostname(f"//{host}")):
            return 403, f"This page is served at 127.0.0.1 and localhost, not at {host}; see --host."
        if origin is not None and origin.partition("://")[2] != host:
            return 403, f"This page takes no requests from {origin}."
        if path not in PATHS and not path.startswith((*FOLDERS, f"{API}/file={self.folder}/")):
            return 404, "Not found."
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        length, most = headers.get("content-length", ""), MAX_UPLOAD if path == UPLOAD else MAX_MESSAGE
        if not (length.isascii() and length.isdigit()):
            return 411, "The request has no Content-Length."
        if len(length) > 15 or int(length) > most:
            return 413, f"The request is larger than {most / 2**20:g} MiB."
        if path == UPLOAD and shutil.disk_usage(self.folder).free < MIN_FREE + int(length):
            return 507, "The server's disk has no room for this recording."
        return None


def _hostname(address: str) -> str:
    """Return the host of an address without its port, or "" if the address is malformed."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Return whether a host is localhost or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
