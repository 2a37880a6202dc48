"""Fetch what a location names: small texts into memory, files through the cache."""

from __future__ import annotations

import contextlib
import io
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

import attrs

from vmcloner_pxe import tftp, web
from vmcloner_pxe.cache import Cache
from vmcloner_pxe.errors import NetbootError, Refused, reason
from vmcloner_pxe.location import Location
from vmcloner_pxe.reach import Reach
from vmcloner_syslinux.config import MAX_CONFIG

MAX_SIZE = 2 * 1024**3


@attrs.frozen(kw_only=True)
class Fetcher:
    """Fetches for any number of guests. Thread-safe.

    :param reach: which servers may be reached. :param cache: None to fetch each file each time.
    :param max_size: bytes of one file. :param deadline: as ``time.monotonic()`` counts.
    """

    deadline: float
    reach: Reach = attrs.field(factory=Reach)
    cache: Cache | None = None
    max_size: int = MAX_SIZE
    block_size: int = tftp.BLOCK_SIZE
    window: int = tftp.WINDOW
    patience: tftp.Patience = attrs.field(factory=tftp.Patience)
    tftp_port: int = tftp.PORT

    def text(self, location: Location) -> bytes:
        """Return a small file's content.

        :raises Refused: the server doesn't have it. :raises NetbootError: as the protocols do.
        """
        buffer = io.BytesIO()
        with self._opened(location, MAX_CONFIG) as (_version, read):
            read(buffer.write)
        return buffer.getvalue()

    def text_if_any(self, location: Location) -> bytes | None:
        """Return a small file's content, None where the server doesn't have it."""
        try:
            return self.text(location)
        except Refused:
            return None

    def file(self, location: Location) -> BinaryIO:
        """Return an open file with what is there; the caller closes it.

        :raises Refused: the server doesn't have it. :raises NetbootError: as the protocols do.
        """
        version = None
        if self.cache is not None:
            with self._opened(location, self.max_size) as (version, _read):
                pass

        def fetch(stream: BinaryIO) -> None:
            with self._opened(location, self.max_size) as (_version, read):
                read(stream.write)

        try:
            if self.cache is not None and version is not None:
                return self.cache.get((str(location), version), fetch, deadline=self.deadline)
            stream = cast(BinaryIO, tempfile.TemporaryFile(buffering=1024**2))  # noqa: SIM115
            with contextlib.ExitStack() as stack:
                stack.callback(stream.close)
                fetch(stream)
                stream.flush()
                stack.pop_all()
        except OSError as error:
            raise NetbootError(f"{location}: can't be stored: {reason(error)}") from error
        return stream

    @contextlib.contextmanager
    def _opened(
        self, location: Location, max_size: int
    ) -> Iterator[tuple[str | None, Callable[[Callable[..., object]], int]]]:
        """Give a file's version, None where the server tells none, and what reads it."""
        if location.scheme != "tftp":
            with web.download(
                str(location),
                self.reach.address,
                max_size=max_size,
                deadline=self.deadline,
            ) as page:
                yield page.version, page.read
            return
        with tftp.Download(
            self.reach.address(location.host, socket.AF_INET),
            location.path,
            port=location.port or self.tftp_port,
            max_size=max_size,
            deadline=self.deadline,
            block_size=self.block_size,
            window=self.window,
            patience=self.patience,
        ) as download:
            download.open()
            yield None if download.size is None else str(download.size), download.read


def first_found(fetcher: Fetcher, locations: list[Location]) -> tuple[Location, bytes] | None:
    """Return the first of several files that a server has, and its content."""
    for location in locations:
        with contextlib.suppress(Refused):
            return location, fetcher.text(location)
    return None
