"""Read remote files in pieces, with retries and with bounds on time and memory.

fsspec lists and opens hf, s3 and http; retries, `Retry-After`, silent servers and servers without ranges are handled
here, since it handles none of them.
"""

from __future__ import annotations

import email.utils
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from magnet_train.errors import UserError, first_line, require_extra

SCHEMES = ("hf", "s3", "https", "http")
_CHUNK = 8 * 2**20  # bytes requested at once: the most that a dropped connection loses
_READ = 2**18  # bytes taken from a connection at once
_ATTEMPTS = 5  # in a row without a whole chunk
_PAUSE = 0.5  # seconds before the second attempt; doubles with each
_SILENCE = 10.0  # seconds without a byte that end an attempt: five of them take less than a minute
_TRICKLE = (30.0, 2**16)  # (seconds, bytes): fewer bytes in that time end an attempt
_MAX_WAIT = 300.0  # seconds that `Retry-After` may request
_TRANSIENT = (408, 425, 429)  # statuses from 400 to 499 that are retried
_FORBIDDEN = (401, 403)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18}|\*)(?:-\d{1,18})?/(\d{1,18})")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class RemoteFolder:
    """A folder behind fsspec whose files are read in pieces, each with retries.

    Args:
        url: hf://, s3:// or https://.

    Raises:
        UserError: Another scheme, or a library that is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        scheme = url.partition("://")[0]
        if scheme not in SCHEMES:
            raise UserError(f"{url} is none of {', '.join(SCHEMES)}; copy the folder here and name the copy.")
        if scheme == "s3":
            require_extra("s3fs", "s3", url)
        self._is_http = scheme in ("http", "https")
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, **_options(scheme))
        except ImportError as error:
            raise UserError(
                f"{url} needs a library that is not installed ({error}); install it with pip."
            ) from error
        if scheme == "s3":
            self._files.retries = 1  # retried here, with a message

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole small file.

        Raises:
            UserError: It does not exist, cannot be reached, or has more than `limit` bytes.
        """
        data = self._retry(name, lambda: b"".join(self._pieces(name, 0, limit + 1)))
        if len(data) > limit:
            raise UserError(f"{self.url}/{name} has more than {limit} bytes; upload it again.")
        return data

    def size(self, name: str, limit: int) -> int:
        """Return the size of a file in bytes, at most `limit` + 1; raises as `pieces` does."""
        return min(self._retry(name, lambda: self._size(name, limit)), limit + 1)

    def pieces(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of a file of `size` bytes from `start`; after a fault, continue from the last byte received.

        Raises:
            UserError: It does not exist or cannot be reached.
        """
        failed = 0  # attempts since the last whole chunk
        since = start
        while start < size:
            try:
                before = start
                end = min(start + _CHUNK, size)
                for data in self._pieces(name, start, size, request_end=end):
                    start += len(data)
                    yield data
                if start == before or start < end:
                    raise OSError(f"{start - before} bytes came instead of {end - before}")
            except Exception as error:  # each backend of fsspec has its own errors
                failed = 1 if start - since >= _CHUNK else failed + 1
                since = start
                self._wait(name, error, failed)

    def _retry(self, name: str, attempt: Callable[[], _T]) -> _T:
        failed = 0
        while True:
            try:
                return attempt()
            except Exception as error:  # each backend of fsspec has its own errors
                failed += 1
                self._wait(name, error, failed)

    def _wait(self, name: str, error: Exception, failed: int) -> None:
        """Log a failure and wait until the next attempt, unless it would fail too or is one too many."""
        where, what = f"{self.url}/{name}", _describe(error)
        status = _status(error)
        if isinstance(error, (FileNotFoundError, PermissionError)) or status in _FORBIDDEN:
            raise UserError(
                f"{where} does not exist or you may not read it ({what}); check the address."
            ) from error
        if failed >= _ATTEMPTS or (400 <= status < 500 and status not in _TRANSIENT):
            raise UserError(f"{where} cannot be read ({what}); try again to resume the download.") from error
        requested = _retry_after(error)
        if requested > _MAX_WAIT:
            raise UserError(
                f"{where} cannot be read ({what}): the server asks to wait {requested:.0f} s; try again then."
            ) from error
        pause = max(_PAUSE * 2 ** (failed - 1), requested)
        _log.warning("%s: %s; attempt %d of %d in %.3g s", where, what, failed + 1, _ATTEMPTS, pause)
        time.sleep(pause)

    def _size(self, name: str, limit: int) -> int:
        if not self._is_http:
            return int(self._files.size(f"{self._root}/{name}"))
        response = self._get(name, {"Range": "bytes=0-0"})
        try:
            total = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status == 206 and total is not None:
                return int(total[2])
            if response.status == 200 and response.content_length is not None:
                return int(response.content_length)
        finally:
            self._files.loop.call_soon_threadsafe(response.close)
        return sum(map(len, self._pieces(name, 0, limit + 1)))

    def _pieces(self, name: str, start: int, end: int, request_end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` as they arrive, none beyond `end`, fewer if the file ends before.

        No byte beyond `request_end` is requested; a server without ranges sends everything, and all is used.
        """
        if not self._is_http:
            until = min(end, request_end or end)
            yield bytes(self._files.cat_file(f"{self._root}/{name}", start=start, end=until))
            return
        headers = {} if request_end is None else {"Range": f"bytes={start}-{request_end - 1}"}
        response = self._get(name, headers)
        try:
            skip, left = 0, end - start
            if response.status == 206 and request_end is not None:
                left = request_end - start
                received = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if received is not None and received[1] != str(start):
                    raise OSError(f"bytes from {received[1]} came instead of {start}")
            else:
                skip = start
            for data in self._stream(response):
                data, skip = data[skip:], max(0, skip - len(data))
                if data:
                    yield data[:left]
                    left -= len(data)
                if left <= 0:
                    return
        finally:
            self._files.loop.call_soon_threadsafe(response.close)

    def _get(self, name: str, headers: dict[str, str]) -> Any:
        """Start a GET request in fsspec's session, and return the response once its headers have arrived."""
        from fsspec.asyn import sync

        async def get() -> Any:
            session = await self._files.set_session()
            address = self._files.encode_url(f"{self._root}/{name}")
            response = await session.get(address, headers={"Accept-Encoding": "identity", **headers})
            if response.status == 404:
                raise FileNotFoundError(str(address))
            response.raise_for_status()
            return response

        return sync(self._files.loop, get, timeout=_TRICKLE[0])

    def _stream(self, response: Any) -> Iterator[bytes]:
        from fsspec.asyn import sync

        received, since = 0, time.monotonic()
        while data := sync(self._files.loop, response.content.read, _READ):
            yield data
            received += len(data)
            now = time.monotonic()
            if received >= _TRICKLE[1]:
                received, since = 0, now
            elif now - since > _TRICKLE[0]:
                raise TimeoutError(f"only {received} bytes in {now - since:.0f} s")


def _options(scheme: str) -> dict[str, Any]:
    """Return the timeouts of a backend; the hub's own is 10 s already."""
    if scheme == "s3":
        timeouts = {"connect_timeout": _SILENCE, "read_timeout": _SILENCE, "retries": {"max_attempts": 0}}
        return {"config_kwargs": timeouts}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=_SILENCE, sock_read=_SILENCE)
        # not decompressed: a few bytes on the wire must not become many in memory
        return {"client_kwargs": {"timeout": timeout, "auto_decompress": False}}
    return {}


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        is_silence = not str(error) or "Timeout on reading" in str(error)
        return f"no answer for {_SILENCE:g} s" if is_silence else first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"


def _status(error: Exception) -> int:
    """Return the HTTP status in an error of aiohttp or the hub, 0 if it has none."""
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", 0))
    return status if isinstance(status, int) else 0


def _retry_after(error: Exception) -> float:
    """Return the seconds that `Retry-After` requests, as a number or a date; 0 if it cannot be read."""
    headers = getattr(error, "headers", getattr(getattr(error, "response", None), "headers", None))
    value = "" if headers is None else str(headers.get("Retry-After", "")).strip()
    if value.isascii() and value.isdigit():
        return float(value[:18])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
