"""Settings of a pool in Ceph: the table ``[hosts.HOST.storage.rbd]``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_USER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# A name, an IPv4 address or [an IPv6 address], and a port.
_MONITOR = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def _check_name(_instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None and not _NAME.fullmatch(value):
        raise InvalidRequest(f"{attribute.name}: not a name of Ceph's that can be used: {value!r}")


def _check_user(_instance: object, _attribute: object, value: str) -> None:
    if not _USER.fullmatch(value):
        raise InvalidRequest(
            f"user: {value!r} is not a name that libvirt takes (letters, digits, - and _)",
            hint="ceph auth get-or-create client.vmcloner: the user is then vmcloner",
        )


def _check_absolute(_instance: object, attribute: attrs.Attribute[Any], value: Path | None) -> None:
    if value is not None and not value.is_absolute():
        raise InvalidRequest(f"{attribute.name} must be absolute, not {str(value)!r}")


def _check_uuid(_instance: object, _attribute: object, value: str | None) -> None:
    if value is not None and not _UUID.fullmatch(value):
        raise InvalidRequest(f"secret: not a UUID: {value!r}", hint="virsh secret-list")


def _check_monitors(_instance: object, _attribute: object, value: tuple[str, ...]) -> None:
    for monitor in value:
        if not _MONITOR.fullmatch(monitor):
            raise InvalidRequest(
                f"monitors: not HOST or HOST:PORT: {monitor!r}",
                hint='for example ["192.0.2.1:6789", "[2001:db8::1]:6789"]',
            )


@attrs.frozen(kw_only=True)
class RbdSettings:
    """The pool, and how its cluster is reached.

    :param pool: the pool's name. :param namespace: the RBD namespace in it, None for none.
    :param conf: Ceph's configuration file; None for ``/etc/ceph/ceph.conf``, or for none at all
        where ``monitors`` are given.
    :param monitors: addresses of the monitors, ``HOST`` or ``HOST:PORT``; empty for those in
        ``conf``.
    :param user: the Ceph user, without ``client.``.
    :param keyring: the file with the user's key, as a keyring or as the key alone; None for
        ``/etc/ceph/ceph.client.USER.keyring``.
    :param secret: UUID of a libvirt secret with that key, which the host's administrator has
        defined; None to give libvirt the key at each start.
    :param timeout: seconds after which a cluster that does not answer is given up.
    """

    pool: str = attrs.field(default="rbd", validator=_check_name)
    namespace: str | None = attrs.field(default=None, validator=_check_name)
    conf: Path | None = attrs.field(default=None, validator=_check_absolute)
    monitors: tuple[str, ...] = attrs.field(default=(), validator=_check_monitors)
    user: str = attrs.field(default="admin", validator=_check_user)
    keyring: Path | None = attrs.field(default=None, validator=_check_absolute)
    secret: str | None = attrs.field(default=None, validator=_check_uuid)
    timeout: int = attrs.field(
        default=30, validator=[attrs.validators.ge(1), attrs.validators.le(3600)]
    )

    @property
    def conf_file(self) -> Path | None:
        """The configuration file that is read; None for none."""
        if self.conf is None and not self.monitors:
            return Path("/etc/ceph/ceph.conf")
        return self.conf

    @property
    def key_file(self) -> Path:
        """The file with the user's key."""
        return self.keyring or Path(f"/etc/ceph/ceph.client.{self.user}.keyring")

    @property
    def place(self) -> str:
        """The pool with its namespace, as in the names of its images."""
        return self.pool if self.namespace is None else f"{self.pool}/{self.namespace}"
