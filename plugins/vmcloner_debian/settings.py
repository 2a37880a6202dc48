"""The builder's options: the table ``image.options`` of a template."""

from __future__ import annotations

import re

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.units import Size, format_size

MIN_SIZE = 1024**3
_SUITE = re.compile(r"[a-z][a-z0-9.-]{1,40}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,127}")  # Debian Policy, 5.6.1


@attrs.frozen(kw_only=True)
class DebianOptions:
    """The contents of the image.

    :param packages: in addition to those in every image. :param size: bytes of the disk.
    :param mirror: URL of the archive; None for Debian's own, with its security updates.
    :param revision: any text; a new text rebuilds the image with the newest packages.
    """

    suite: str = "bookworm"
    packages: tuple[str, ...] = ()
    size: Size = 2 * 1024**3
    mirror: str | None = None
    revision: str = ""

    def __attrs_post_init__(self) -> None:
        if not _SUITE.fullmatch(self.suite):
            raise InvalidRequest(
                f"suite: not a valid name: {self.suite!r}", hint="for example bookworm"
            )
        for package in self.packages:
            if not _PACKAGE.fullmatch(package):
                raise InvalidRequest(f"packages: not a valid name: {package!r}")
        if self.size < MIN_SIZE or self.size % 1024**2:
            raise InvalidRequest(
                f"size: {self.size} bytes: must be whole MiB, {format_size(MIN_SIZE)} at least"
            )
        if self.mirror is not None and not re.fullmatch(r"https?://[^\s'\"]+", self.mirror):
            raise InvalidRequest(f"mirror: not http or https: {self.mirror!r}")
