"""Fetch a file of a web server, which is hostile: bounded in size, time and rate."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vmcloner_core.errors import HostCommandError, NotEnoughResources, shown
from vmcloner_core.units import format_size

if TYPE_CHECKING:
    import urllib3

BLOCK = 1024**2
CONNECT_TIMEOUT = 20.0
READ_TIMEOUT = 60.0
"""Seconds without a byte."""
REDIRECTS = 5
PERIOD = 60.0
SLOWEST = 64 * 1024
"""Bytes that have to come in each period of so many seconds."""
RESERVE = 64 * 1024**2
"""Bytes that are left free on the file system."""


def fetch(url: str, path: Path, progress: Callable[[int, int], None]) -> None:
    """Write the body of ``url`` to a file.

    :raises HostCommandError: the server doesn't answer, answers with something else than the whole
        file, or too slowly. :raises NotEnoughResources: there is no room for it.
    """
    with _answer(url) as answer, _translated(url, path), path.open("wb") as stream:
        total = _length(answer, url)
        room = shutil.disk_usage(path.parent).free - RESERVE
        done, mark, due = 0, 0, time.monotonic() + PERIOD
        # One read of the socket at a time: a whole block may take a slow server for ever.
        while block := answer.read1(BLOCK, decode_content=False):
            done += len(block)
            if max(done, total) > room:
                raise NotEnoughResources(
                    f"{url}: more than the {format_size(max(0, room))} that are free in "
                    f"{path.parent}"
                )
            stream.write(block)
            progress(done, total)
            if time.monotonic() > due:
                if done - mark < SLOWEST:
                    raise HostCommandError(f"{url}: less than {SLOWEST} bytes in {PERIOD:.0f} s")
                mark, due = done, time.monotonic() + PERIOD
        if total and done != total:
            raise HostCommandError(f"{url}: truncated: {done} of {total} bytes")


@contextlib.contextmanager
def _answer(url: str) -> Iterator[urllib3.BaseHTTPResponse]:
    import urllib3

    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)
    retries = urllib3.Retry(3, redirect=REDIRECTS, respect_retry_after_header=False)
    with urllib3.PoolManager(retries=retries, timeout=timeout) as pool:
        try:
            answer = pool.request(
                "GET", url, headers={"Accept-Encoding": "identity"}, preload_content=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise HostCommandError(f"{url}: {shown(str(error))}") from error
        try:
            if answer.status != 200:
                raise HostCommandError(f"{url}: the server answered {answer.status}")
            encoding = answer.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise HostCommandError(f"{url}: the server encodes it as {shown(encoding, 40)!r}")
            yield answer
        finally:
            answer.close()


def _length(answer: urllib3.BaseHTTPResponse, url: str) -> int:
    """Return how many bytes the server says that it sends, 0 where it doesn't."""
    text = answer.headers.get("Content-Length", "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise HostCommandError(f"{url}: the server says a length of {shown(text, 40)!r}")
    return int(text)


@contextlib.contextmanager
def _translated(url: str, path: Path) -> Iterator[None]:
    import urllib3

    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        raise HostCommandError(f"{url}: {shown(str(error))}") from error
    except OSError as error:
        raise HostCommandError(f"{path}: {error.strerror}") from error
