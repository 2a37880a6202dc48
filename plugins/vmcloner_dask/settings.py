"""Settings of the carrier: the table ``[carrier]`` with ``driver = "dask"``."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.trusted_files import check_file


def _check_scheduler(_instance: object, _attribute: attrs.Attribute[Any], value: str) -> None:
    if _parsed(value) is None:
        raise InvalidRequest(
            f"scheduler: not an address of Dask: {value[:80]!r}", hint="like tls://lab.example:8786"
        )


def _check_absolute(_instance: object, attribute: attrs.Attribute[Any], value: Path | None) -> None:
    if value is None:
        return
    if not value.is_absolute():
        raise InvalidRequest(f"{attribute.name} must be an absolute path, not {str(value)!r}")
    if not value.is_file():
        raise InvalidRequest(f"{attribute.name}: no file {value}")
    check_file(value)


@attrs.frozen(kw_only=True)
class DaskSettings:
    """Where the cluster's scheduler is, and how both sides prove who they are.

    :param scheduler: its address, ``tls://HOST:PORT``; ``tcp://`` only on this machine.
    :param ca, cert, key: files (PEM): the cluster's authority, and this machine's certificate and
        key. Needed off this machine: whoever reaches a scheduler is root on all of its hosts.
    """

    scheduler: str = attrs.field(validator=_check_scheduler)
    ca: Path | None = attrs.field(default=None, validator=_check_absolute)
    cert: Path | None = attrs.field(default=None, validator=_check_absolute)
    key: Path | None = attrs.field(default=None, validator=_check_absolute)

    def __attrs_post_init__(self) -> None:
        files = (self.ca, self.cert, self.key)
        if self.encrypted and None in files:
            raise InvalidRequest(f"scheduler: {self.scheduler} needs ca, cert and key")
        if not self.encrypted and not is_loopback(self.scheduler):
            raise InvalidRequest(
                f"scheduler: {self.scheduler} is not on this machine, so both sides must prove who "
                "they are",
                hint='scheduler = "tls://…", with ca, cert and key',
            )

    @property
    def encrypted(self) -> bool:
        """Whether the connections are."""
        return self.scheduler.startswith("tls://")


def is_loopback(address: str) -> bool:
    """Tell whether an address of Dask is one of this machine only."""
    found = _parsed(address)
    if found is None:
        return False
    host = found[2].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parsed(address: str) -> re.Match[str] | None:
    return re.fullmatch(r"(tls|tcp)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})", address)
