"""What gradio leaves open, closed before a request reaches it.

gradio checks paths, sizes and sessions itself. It answers any name that points to this machine and, outside of
localhost, pages of other origins; it fetches any address for whoever asks; it reads a message of any length; and it
takes uploads until the disk is full.
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

LARGEST_FILE = 100 * 2**20  # bytes of a recording
LARGEST_UPLOAD = LARGEST_FILE + 2**20  # with what a browser writes around it
LARGEST_MESSAGE = 2**18  # bytes of anything else; a form is a few kB
ROOM_LEFT = 2**30  # bytes on the disk that uploads leave free

API = "/gradio_api"
UPLOAD = f"{API}/upload"
# What the page asks for. gradio has more, such as fetching any address for whoever asks, which nobody needs here.
PATHS = {
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    "/login",
    "/logout",
} | {
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
FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/", f"{API}/run/")
# Nothing is loaded from, or sent to, another host, whatever a library's page would like to.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)

_log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware: only the page's own requests, of bounded size, and pages that load nothing from elsewhere.

    Args:
        app: gradio.
        host: As given to --host; on a loopback address only names of this machine are answered.
        folder: Uploads and clips, the only files that may be asked for.
    """

    def __init__(self, app: ASGIApp, host: str, folder: Path) -> None:
        self.app, self.loopback, self.folder = app, is_loopback(host), folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let gradio do it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def send_with_policy(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = CONTENT_POLICY
                headers["referrer-policy"] = "no-referrer"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._foreign(headers) or self._unknown(scope["path"])
        if refusal is None and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            refusal = self._too_large(scope["path"], headers)
        answer = self.app if refusal is None else PlainTextResponse(refusal[1], refusal[0])
        try:
            await answer(scope, receive, send_with_policy)
        except Exception as error:  # gradio has no words for nonsense that comes as far as its own code
            _log.warning(
                "a request for %.100r failed (%s: %.200s)", scope["path"], type(error).__name__, error
            )
            if not started:
                await PlainTextResponse("This request cannot be read.", 400)(scope, receive, send_with_policy)

    def _foreign(self, headers: Headers) -> tuple[int, str] | None:
        """Refuse what a website makes the browser of somebody at this machine send, also under a name of its own."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.loopback and not is_loopback(_name(f"//{host}")):
            return 403, f"This page answers to 127.0.0.1 and localhost, not to {host}; see --host."
        if origin is not None and origin.partition("://")[2] != host:
            return 403, f"This page does not answer to {origin}."
        return None

    def _unknown(self, path: str) -> tuple[int, str] | None:
        if path in PATHS or path.startswith((*FOLDERS, f"{API}/file={self.folder}/")):
            return None
        return 404, "There is nothing here."

    def _too_large(self, path: str, headers: Headers) -> tuple[int, str] | None:
        length, most = (
            headers.get("content-length", ""),
            LARGEST_UPLOAD if path == UPLOAD else LARGEST_MESSAGE,
        )
        if not (length.isascii() and length.isdigit()):
            return 411, "A request has to say how long it is."
        if len(length) > 15 or int(length) > most:
            return 413, f"This is larger than {most / 2**20:g} MiB, the most that this page takes at once."
        if path == UPLOAD and shutil.disk_usage(self.folder).free < ROOM_LEFT + int(length):
            return 507, "The disk has no room for this recording; ask whoever runs this page."
        return None


def _name(address: str) -> str:
    """Return the host of an address without its port; "" for what is not an address."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine as seen by itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
