"""Read files behind a URL in pieces, each tried several times and none without a bound on time and memory."""

from __future__ import annotations

import email.utils
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from magnet_train.errors import UserError, first_line, require_extra
from magnet_train.storage.atomic_io import explain_disk_errors

SCHEMES = ("hf", "s3", "https", "http")
_CHUNK = 8 * 2**20  # bytes asked for at once: what a dropped connection costs
_READ = 2**18  # bytes taken from a connection at once
_ATTEMPTS = 5  # in a row without a whole chunk
_PAUSE = 0.5  # seconds before the second attempt; doubles with each
_SILENCE = 10.0  # seconds without a byte that end an attempt: five of them take less than a minute
_TRICKLE = (30.0, 2**16)  # (seconds, bytes): the least that has to come in that time
_LONGEST_WAIT = 300.0  # seconds that a server may ask us to wait
_TRANSIENT = (408, 425, 429)  # the answers from 400 to 499 that another attempt may change
_CLOSED = (401, 403)
_TOTAL = re.compile(r"bytes (\d{1,18}|\*)(?:-\d{1,18})?/(\d{1,18})")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class RemoteFolder:
    """A folder behind fsspec that is read in pieces, each tried several times.

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
            raise UserError(f"{url} is of none of the kinds {', '.join(SCHEMES)}; copy it here yourself.")
        if scheme == "s3":
            require_extra("s3fs", "s3", url)
        self._is_http = scheme in ("http", "https")
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, **_options(scheme))
        except ImportError as error:
            raise UserError(f"{url} needs a library that is not installed: {error}") from error
        if scheme == "s3":
            self._files.retries = 1  # we try again ourselves, and say so

    def read(self, name: str, most: int) -> bytes:
        """Return a whole small file.

        Raises:
            UserError: It is not there, cannot be reached, or has more than `most` bytes.
        """
        data = self._persist(name, lambda: b"".join(self._pieces(name, 0, most + 1)))
        if len(data) > most:
            raise UserError(f"{self.url}/{name} has more than {most} bytes; upload it again.")
        return data

    def size(self, name: str, most: int) -> int:
        """Return the bytes of a file; `most` + 1 stands for all that is larger.

        Raises:
            UserError: It is not there or cannot be reached.
        """
        return min(self._persist(name, functools.partial(self._size, name, most)), most + 1)

    def append(self, name: str, target: Path, size: int, progress: Callable[[int], None]) -> None:
        """Bring what `target` still lacks of a file of `size` bytes.

        Raises:
            UserError: It is not there or cannot be reached, or no room on disk.
        """
        with explain_disk_errors(target), target.open("ab") as file:
            for data in self._all_pieces(name, file.tell(), size):
                file.write(data)
                progress(len(data))

    def read_pieces(self, name: str, size: int) -> bytes:
        """Return a whole file of `size` bytes.

        Raises:
            UserError: It is not there or cannot be reached.
        """
        return b"".join(self._all_pieces(name, 0, size))

    def _all_pieces(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `size`; what came before a fault is not asked for again."""
        failed = 0  # attempts since the last whole chunk
        since = start
        while start < size:
            try:
                before = start
                end = min(start + _CHUNK, size)
                for data in self._pieces(name, start, size, ask_until=end):
                    start += len(data)
                    yield data
                if start == before or start < end:
                    raise OSError(f"{start - before} bytes came instead of {end - before}")
            except Exception as error:  # each of fsspec's backends has errors of its own
                failed = 1 if start - since >= _CHUNK else failed + 1
                since = start
                self._wait(name, error, failed)

    def _persist(self, name: str, attempt: Callable[[], _T]) -> _T:
        failed = 0
        while True:
            try:
                return attempt()
            except Exception as error:  # each of fsspec's backends has errors of its own
                failed += 1
                self._wait(name, error, failed)

    def _wait(self, name: str, error: Exception, failed: int) -> None:
        """Say what failed, and wait until the next attempt.

        Raises:
            UserError: There is none: it would end the same way, was the last, or the server asks for a long wait.
        """
        if isinstance(error, UserError):
            raise error
        where, what = f"{self.url}/{name}", _describe(error)
        status = _status(error)
        if isinstance(error, (FileNotFoundError, PermissionError)) or status in _CLOSED:
            raise UserError(f"{where} is not there or closed to you ({what}).") from error
        if failed >= _ATTEMPTS or (400 <= status < 500 and status not in _TRANSIENT):
            raise UserError(
                f"{where} cannot be read ({what}); try again, what came so far is kept."
            ) from error
        pause = _PAUSE * 2 ** (failed - 1)
        asked = _retry_after(error)
        if asked > _LONGEST_WAIT:
            raise UserError(
                f"{where} cannot be read ({what}): the server asks to wait {asked:.0f} s; try again then."
            ) from error
        pause = max(pause, asked)
        _log.warning("%s: %s; attempt %d of %d in %.3g s", where, what, failed + 1, _ATTEMPTS, pause)
        time.sleep(pause)

    def _size(self, name: str, most: int) -> int:
        if not self._is_http:
            return int(self._files.size(f"{self._root}/{name}"))
        response = self._get(name, {"Range": "bytes=0-0"})
        try:
            total = _TOTAL.fullmatch(response.headers.get("Content-Range", ""))
            if response.status == 206 and total is not None:
                return int(total[2])
            if response.status == 200 and response.content_length is not None:
                return int(response.content_length)
        finally:
            self._files.loop.call_soon_threadsafe(response.close)
        return sum(map(len, self._pieces(name, 0, most + 1)))

    def _pieces(self, name: str, start: int, end: int, ask_until: int | None = None) -> Iterator[bytes]:
        """Yield bytes from `start` on as they come, none beyond `end`, fewer where the file ends before.

        Args:
            name: File in the folder.
            start: First byte.
            end: One past the last byte.
            ask_until: Ask for no more than this; a server that knows no ranges sends all, and all is used.
        """
        if not self._is_http:
            yield bytes(
                self._files.cat_file(f"{self._root}/{name}", start=start, end=min(end, ask_until or end))
            )
            return
        response = self._get(name, {} if ask_until is None else {"Range": f"bytes={start}-{ask_until - 1}"})
        try:
            skip, left = 0, end - start
            if response.status == 206 and ask_until is not None:
                left = ask_until - start
                came = _TOTAL.fullmatch(response.headers.get("Content-Range", ""))
                if came is not None and came[1] != str(start):
                    raise OSError(f"bytes from {came[1]} came instead of {start}")
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
        """Begin to GET a file, with the session of fsspec, and give the response once its headers are there."""
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

        came, since = 0, time.monotonic()
        while data := sync(self._files.loop, response.content.read, _READ):
            yield data
            came += len(data)
            now = time.monotonic()
            if came >= _TRICKLE[1]:
                came, since = 0, now
            elif now - since > _TRICKLE[0]:
                raise TimeoutError(f"only {came} bytes in {now - since:.0f} s")


def _options(scheme: str) -> dict[str, Any]:
    """Return what makes a backend give up in time; that of the hub gives up after 10 s by itself."""
    if scheme == "s3":
        patience = {"connect_timeout": _SILENCE, "read_timeout": _SILENCE, "retries": {"max_attempts": 0}}
        return {"config_kwargs": patience}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=_SILENCE, sock_read=_SILENCE)
        # undecoded: a few bytes on the way must not become many in memory
        return {"client_kwargs": {"timeout": timeout, "auto_decompress": False}}
    return {}


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        silent = not str(error) or "Timeout on reading" in str(error)
        return f"no answer for {_SILENCE:g} s" if silent else first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"


def _status(error: Exception) -> int:
    """Return the HTTP status within an error of aiohttp or the hub, 0 where there is none."""
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", 0))
    return status if isinstance(status, int) else 0


def _retry_after(error: Exception) -> float:
    """Return how many seconds the server asks us to wait: `Retry-After` has a number or a date."""
    headers = getattr(error, "headers", getattr(getattr(error, "response", None), "headers", None))
    value = "" if headers is None else str(headers.get("Retry-After", "")).strip()
    if value.isascii() and value.isdigit():
        return float(value[:18])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
