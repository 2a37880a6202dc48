"""Names of boot files: which server, which protocol, which path (PXELINUX's manual, RFC 3986)."""

from __future__ import annotations

import re
from typing import Literal, cast

import attrs

from vmcloner_pxe.errors import NetbootError, shown

Scheme = Literal["tftp", "http", "https"]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_ROOT = re.compile(r"[A-Za-z]+://[^/]*")
_OTHER_SERVER = re.compile(r"([^/:]*)::(.*)", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")


@attrs.frozen(kw_only=True)
class Location:
    """A file of a server. ``path`` is what TFTP asks for, or what follows a web server's name.

    It is never a path of this host: what is fetched gets a name of our own.
    """

    scheme: Scheme
    host: str
    path: str
    port: int | None = None

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        slash = "" if self.path.startswith("/") else "/"
        return f"{self.scheme}://{self.host}{port}{slash}{self.path}"


@attrs.frozen(kw_only=True)
class Base:
    """What names of a configuration are relative to.

    :param server: the boot server. :param prefix: a folder with its final slash, a URL, or empty.
    """

    server: str
    prefix: str = ""

    def locate(self, name: str) -> Location:
        """Return where a file is.

        ``NAME`` is put behind the prefix, ``::NAME`` is without it, ``HOST::NAME`` on another
        server, ``tftp://``, ``http://`` and ``https://`` stand for themselves.

        :raises NetbootError: no name, or one that can't be fetched.
        """
        if not name or not name.isprintable():
            raise NetbootError(f"not a file's name: {shown(name)!r}")
        if found := _location(name, self.server):
            return found
        root = _ROOT.match(self.prefix) if name.startswith("/") else None
        if found := _location((root[0] if root else self.prefix) + name, self.server):
            return found
        return _tftp(self.server, self.prefix + name)


def beside(file: Location) -> Base:
    """Return what is relative to a file, as links of a web page are."""
    whole = str(file)
    return Base(server=file.host, prefix=whole[: whole.rfind("/") + 1])


def base_of(boot_server: str, boot_file: str, path_prefix: str | None) -> Base:
    """Return what is relative to what, by the boot file's name and the option 210."""
    if path_prefix is not None:
        return Base(server=boot_server, prefix=path_prefix)
    if found := _OTHER_SERVER.fullmatch(boot_file):
        boot_server, boot_file = found[1] or boot_server, found[2]
    return Base(server=boot_server, prefix=boot_file[: boot_file.rfind("/") + 1])


def _location(name: str, server: str) -> Location | None:
    """Return where a name leads that says so itself; None for a relative one."""
    if found := _URL.fullmatch(name):
        return _from_url(name, found[1].lower(), found[2])
    if found := _OTHER_SERVER.fullmatch(name):
        return _tftp(found[1] or server, found[2])
    return None


def _tftp(host: str, path: str) -> Location:
    if not _HOST.fullmatch(host):
        raise NetbootError(f"not a server's name: {shown(host)!r}")
    if not path:
        raise NetbootError(f"no file's name after {shown(host)}::")
    return Location(scheme="tftp", host=host, path=path)


def _from_url(name: str, scheme: str, rest: str) -> Location:
    if scheme not in ("tftp", "http", "https"):
        raise NetbootError(
            f"{shown(name)}: {scheme} is not supported", hint="offer it by tftp, http or https"
        )
    where, _slash, path = rest.partition("/")
    found = _HOST_PORT.fullmatch(where)
    if found is None or not path or int(found[2] or 1) not in range(1, 65536):
        raise NetbootError(f"{shown(name)}: not a URL of a file")
    if scheme != "tftp":
        path = f"/{path.replace(' ', '%20')}"
    return Location(
        scheme=cast(Scheme, scheme),
        host=found[1],
        port=int(found[2]) if found[2] else None,
        path=path,
    )
