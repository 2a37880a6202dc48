"""Files of web servers, for boot files whose names are URLs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from urllib.parse import urljoin

import urllib3

from vmcloner_pxe.errors import NetbootError, Refused, shown

BLOCK = 256 * 1024
MAX_REDIRECTS = 5
IDLE = 10.0
"""Seconds without a byte."""


class Download:
    """One file of a web server, open for reading.

    :param size: bytes, None where the server doesn't say.
    :param version: what changes when the file does (its ETag, else when it was last modified),
        None where the server doesn't say.
    """

    def __init__(
        self, answer: urllib3.BaseHTTPResponse, what: str, *, max_size: int, deadline: float
    ) -> None:
        self._answer, self._what = answer, what
        self._max_size, self._deadline = max_size, deadline
        length = answer.headers.get("Content-Length", "")
        self.size = int(length) if length.isdecimal() and len(length) < 20 else None
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        self.version = f"{version} {self.size}" if version else None

    def read(self, write: Callable[[bytes], object]) -> int:
        """Hand the file's bytes to ``write``, in order; return how many they are.

        :raises NetbootError: it is too large, truncated, or takes too long.
        """
        total = 0
        self._check(self.size or 0)
        with _translated(self._what):
            for block in self._answer.stream(BLOCK, decode_content=False):
                total += len(block)
                self._check(total)
                write(block)
        if self.size is not None and total != self.size:
            raise NetbootError(f"{self._what}: truncated: {total} of {self.size} bytes")
        return total

    def _check(self, size: int) -> None:
        if size > self._max_size:
            raise NetbootError(
                f"{self._what}: larger than {self._max_size} bytes", hint="raise --max-size"
            )
        if time.monotonic() > self._deadline:
            raise NetbootError(f"{self._what}: timeout: not fetched in time")


@contextlib.contextmanager
def download(
    url: str, address: Callable[[str], str], *, max_size: int, deadline: float
) -> Iterator[Download]:
    """Ask a web server for a file, and those that it redirects to.

    :param address: returns the address to connect to for a host's name, or raises.
    :param deadline: for the whole of it, as ``time.monotonic()`` counts.
    :raises Refused: the server doesn't have it, or doesn't give it.
    :raises NetbootError: it doesn't answer; and whatever ``address`` raises.
    """
    what = shown(url)
    with contextlib.ExitStack() as stack:
        for _redirect in range(MAX_REDIRECTS + 1):
            with _translated(what):
                answer = stack.enter_context(_asked(url, address, deadline))
                where = answer.get_redirect_location()
                if where:
                    url = urljoin(url, where)
                    continue
            if 400 <= answer.status < 500:
                raise Refused(f"{what}: the server answers {answer.status}")
            if answer.status != 200:
                raise NetbootError(f"{what}: the server answers {answer.status}")
            yield Download(answer, what, max_size=max_size, deadline=deadline)
            return
        raise NetbootError(f"{what}: redirected more than {MAX_REDIRECTS} times")


@contextlib.contextmanager
def _asked(
    url: str, address: Callable[[str], str], deadline: float
) -> Iterator[urllib3.BaseHTTPResponse]:
    """Ask one server, at the address that was looked at, by the name that its certificate has."""
    parts = urllib3.util.parse_url(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise NetbootError(f"{shown(url)}: not a web server's file")
    host = parts.host.strip("[]")
    left = max(0.1, deadline - time.monotonic())
    timeout = urllib3.Timeout(connect=min(IDLE, left), read=min(IDLE, left))
    pool: urllib3.HTTPConnectionPool
    if parts.scheme == "https":
        pool = urllib3.HTTPSConnectionPool(
            address(host), parts.port, timeout=timeout, server_hostname=host, assert_hostname=host
        )
    else:
        pool = urllib3.HTTPConnectionPool(address(host), parts.port, timeout=timeout)
    with pool:
        answer = pool.request(
            "GET",
            parts.request_uri,
            headers={"Host": str(parts.netloc), "Accept-Encoding": "identity"},
            retries=urllib3.Retry(connect=1, read=0, redirect=False, other=0),
            redirect=False,
            preload_content=False,
        )
        try:
            yield answer
        finally:
            answer.close()


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except urllib3.exceptions.MaxRetryError as error:
        raise NetbootError(f"{what}: {_reason(error.reason or error)}") from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise NetbootError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timeout: the server doesn't answer"
    if isinstance(error, urllib3.exceptions.IncompleteRead):
        return f"truncated: {error}"
    return shown(str(error).rpartition(": ")[2] or type(error).__name__)
