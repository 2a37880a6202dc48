"""Fetch a file of a web server, which is hostile: bounded in size, time and rate."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO
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
MAX_MARK = 256
OK, PARTIAL, BEYOND = 200, 206, 416
"""Answers: the whole file, a part of it, the file has no such part."""


def fetch(url: str, path: Path, progress: Callable[[int, int], None]) -> None:
    """Write the body of ``url`` to a file.

    :raises HostCommandError: the server doesn't answer, answers with something else than the whole
        file, or too slowly. :raises NotEnoughResources: there is no room for it.
    """
    with _answer(url) as answer, _translated(url, path), path.open("wb") as stream:
        _store(answer, url, stream, 0, progress)


def resume(url: str, path: Path, progress: Callable[[int, int], None]) -> None:
    """Write the body of ``url`` to a file, of which an earlier call may have written a part.

    It goes on after that part if the server says that it has the same file still; the server's mark
    of it (ETag or time of change) is kept in a file beside it, named like it and ``.mark``.

    :raises HostCommandError, NotEnoughResources: as :func:`fetch`; what came is kept.
    """
    mark = path.with_name(f"{path.name}.mark")
    with _translated(url, path):
        start = path.stat().st_size if path.exists() and mark.exists() else 0
        known = mark.read_text(errors="replace")[:MAX_MARK] if start else ""
    onward = {"Range": f"bytes={start}-", "If-Range": known} if known else {}
    with _answer(url, headers=onward) as answer, _translated(url, path):
        if answer.status == PARTIAL:
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise HostCommandError(f"{url}: the server sends another part than was asked for")
            with path.open("ab") as stream:
                _store(answer, url, stream, start, progress)
            return
        if answer.status == OK:
            path.unlink(missing_ok=True)  # before its mark changes
            mark.write_text(_mark(answer))
            with path.open("wb") as stream:
                _store(answer, url, stream, 0, progress)
            return
    with _translated(url, path):
        path.unlink()  # it is as long as the whole file, or longer
    resume(url, path, progress)


def _mark(answer: urllib3.BaseHTTPResponse) -> str:
    """Return what tells a file from later ones of the same URL, empty if nothing surely does."""
    tag = answer.headers.get("ETag", "")
    mark = answer.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    return mark if len(mark) <= MAX_MARK and mark.isascii() and mark.isprintable() else ""


def read(url: str, limit: int) -> bytes:
    """Return the body of ``url``, which has ``limit`` bytes at most.

    :raises HostCommandError: as :func:`fetch`, or it is larger.
    """
    body = b""
    with _answer(url) as answer, _translated(url, url):
        for block, _, total in _blocks(answer, url, 0):
            body += block
            if max(total, len(body)) > limit:
                raise HostCommandError(f"{url}: larger than {format_size(limit)}")
    return body


def size(url: str) -> int:
    """Return how many bytes the server says that ``url`` has, 0 if it doesn't say.

    :raises HostCommandError: the server doesn't answer, or doesn't have it.
    """
    with _answer(url, "HEAD") as answer:
        return _length(answer, url)


def _store(
    answer: urllib3.BaseHTTPResponse,
    url: str,
    stream: BinaryIO,
    start: int,
    progress: Callable[[int, int], None],
) -> None:
    """Write a body to an open file, of which it has ``start`` bytes already."""
    folder = Path(stream.name).parent
    room = shutil.disk_usage(folder).free - RESERVE
    for block, done, total in _blocks(answer, url, start):
        if max(done, total) - start > room:
            raise NotEnoughResources(
                f"{url}: more than the {format_size(max(0, room))} that are free in {folder}"
            )
        stream.write(block)
        progress(done, total)


def _blocks(
    answer: urllib3.BaseHTTPResponse, url: str, start: int
) -> Iterator[tuple[bytes, int, int]]:
    """Yield a body's blocks, the bytes so far, and the bytes of the whole file (0: unknown).

    :param start: the bytes before the body. :raises HostCommandError: it is too slow, or cut off.
    """
    length = _length(answer, url)
    total = start + length if length else 0
    done, mark, due = start, start, time.monotonic() + PERIOD
    # One read of the socket at a time: a whole block may take a slow server for ever.
    while block := answer.read1(BLOCK, decode_content=False):
        done += len(block)
        yield block, done, total
        if time.monotonic() > due:
            if done - mark < SLOWEST:
                raise HostCommandError(f"{url}: less than {SLOWEST} bytes in {PERIOD:.0f} s")
            mark, due = done, time.monotonic() + PERIOD
    if total and done != total:
        raise HostCommandError(f"{url}: truncated: {done} of {total} bytes")


@contextlib.contextmanager
def _answer(
    url: str, method: str = "GET", headers: Mapping[str, str] = MappingProxyType({})
) -> Iterator[urllib3.BaseHTTPResponse]:
    """Yield a server's answer; redirects are followed, but never from https to http.

    With a ``Range`` in ``headers``, the answer may be of a part, or that there is no such part.
    """
    import urllib3

    with contextlib.ExitStack() as stack:
        at, secure = url, url.startswith("https://")
        for _ in range(REDIRECTS + 1):
            pool = stack.enter_context(_pool(at))
            try:
                # Not followed by urllib3: another host may need another proxy, or none.
                answer = pool.request(
                    method,
                    at,
                    headers={"Accept-Encoding": "identity", **headers},
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
            if not at.startswith(("https://",) if secure else ("http://", "https://")):
                raise HostCommandError(f"{url}: redirects to {shown(at, 80)!r}")
        else:
            raise HostCommandError(f"{url}: too many redirects")
        if answer.status not in ((OK, PARTIAL, BEYOND) if "Range" in headers else (OK,)):
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
def _translated(url: str, path: object) -> Iterator[None]:
    import urllib3

    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        raise HostCommandError(f"{url}: {shown(str(error))}") from error
    except OSError as error:
        raise HostCommandError(f"{path}: {error.strerror}") from error
