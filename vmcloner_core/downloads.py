"""Fetch a file of a web server, which is hostile: bounded in size, time and rate."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from vmcloner_core.errors import HostCommandError, InvalidRequest, NotEnoughResources, shown
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

    with contextlib.ExitStack() as stack:
        at = url
        for _ in range(REDIRECTS + 1):
            pool = stack.enter_context(_pool(at))
            try:
                # Not followed by urllib3: another host may need another proxy, or none.
                answer = pool.request(
                    "GET",
                    at,
                    headers={"Accept-Encoding": "identity"},
                    preload_content=False,
                    redirect=False,
                )
            except urllib3.exceptions.HTTPError as error:
                raise HostCommandError(f"{url}: {shown(str(error))}") from error
            stack.callback(answer.close)
            onward = answer.get_redirect_location()
            if not onward:
                break
            at = urljoin(at, onward)
            if not at.startswith(("http://", "https://")):
                raise HostCommandError(f"{url}: redirects to {shown(at, 80)!r}")
        else:
            raise HostCommandError(f"{url}: too many redirects")
        if answer.status != 200:
            raise HostCommandError(f"{url}: the server answered {answer.status}")
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise HostCommandError(f"{url}: the server encodes it as {shown(encoding, 40)!r}")
        yield answer


def _pool(url: str) -> urllib3.PoolManager:
    """Return connections to a server, through a proxy if the environment names one for it.

    The variables are ``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy``, in lower or
    upper case.

    :raises InvalidRequest: the proxy is none that speaks HTTP.
    """
    from urllib.request import getproxies_environment, proxy_bypass

    import urllib3

    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)
    retries = urllib3.Retry(3, redirect=0, respect_retry_after_header=False)
    target, proxies = urlsplit(url), getproxies_environment()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(target.netloc.rpartition("@")[2]):
        return urllib3.PoolManager(retries=retries, timeout=timeout)
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{parts.scheme}://{parts.hostname} is no HTTP proxy")
        login = None
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return urllib3.ProxyManager(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            proxy_headers=urllib3.make_headers(proxy_basic_auth=login),
            retries=retries,
            timeout=timeout,
        )
    except (ValueError, urllib3.exceptions.HTTPError) as error:
        raise InvalidRequest(
            f"{url}: the proxy in the environment can't be used: {shown(str(error), 200)}",
            hint=f"set {target.scheme}_proxy to http://HOST:PORT, or no_proxy to the server's name",
        ) from error


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
