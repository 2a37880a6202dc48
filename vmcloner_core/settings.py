"""Settings: one TOML file, the first that exists of ``$VMCLONER_CONFIG``, ``./vmcloner.toml``, the
user's (``~/.config/vmcloner/vmcloner.toml``) and ``/etc/vmcloner/vmcloner.toml``.

Everything has a default, so the file is optional. A complete example::

    [defaults]
    host = "local"
    hypervisor = "kvm"
    storage = "files"
    ttl = "8h"                      # new clones are leased for so long; none: no end
    lease_warning = "1h"            # how long before a lease's end observers are warned

    [limits]
    memory_overcommit = 1.5         # guests' memory may be this many times the free memory
    boot_jobs = 8                   # guests that boot at once; "auto" (the default): see below
    uploads = 8                     # hosts to which an image is sent at once
    max_clones_per_owner = 50       # clones that one user may have
    max_memory_per_owner = "64GiB"  # memory of all clones of one user

    [hosts.local]
    state = "/var/lib/vmcloner"     # console logs, run logs, built templates
    seed = "rack 7, host 2"         # only if this host has the machine-id and name of another one

    [hosts.local.hypervisor.kvm]    # for keys, see the backend's documentation
    uri = "qemu:///system"

    [hosts.local.storage.fast]      # a pool named "fast" that uses the driver "files"
    driver = "files"
    path = "/srv/fast"

    [hosts.lab1]                    # another machine: see docs/hosts.md
    ssh = "root@lab1.example"

    [groups]
    lab = "lab[1-30]"               # create --hosts @lab

    [carrier]                       # what carries calls to other machines: see docs/hosts.md
    driver = "mitogen"

``boot_jobs = "auto"`` admits as many booting guests as the host can carry; see
docs/reaching-clones.md.

A table under ``storage`` or ``hypervisor`` configures a backend of that name; ``driver`` selects
the driver and may be omitted if it has the same name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core import user_folders
from vmcloner_core.errors import InvalidRequest, NotFound, did_you_mean
from vmcloner_core.model import BackendTable, Host, RemoteHost, check_ttl
from vmcloner_core.plan import AUTO, check_boot_jobs
from vmcloner_core.tomlfile import read_toml, structure
from vmcloner_core.trusted_files import exists
from vmcloner_core.units import Duration, Size

FILE = "vmcloner.toml"
SYSTEM = Path("/etc/vmcloner")
REMOTE_PYTHON = "/opt/vmcloner/bin/python"
"""Where ``host add`` installs vmcloner."""
LOCAL = "local"
"""The name of the machine that the process runs on."""


@attrs.frozen(kw_only=True)
class Defaults:
    """What is used if a request does not say.

    :param host: the name of a host. :param hypervisor: the backend of new clones.
    :param storage: the pool of new clones.
    :param ttl: seconds that new clones are leased for; None for no end.
    :param lease_warning: seconds before a lease's end from which ``gc`` warns of it.
    """

    host: str = "local"
    hypervisor: str = "kvm"
    storage: str = "files"
    ttl: Duration | None = attrs.field(
        default=None, validator=lambda _instance, _attribute, value: check_ttl(value)
    )
    lease_warning: Duration = 3600


def _boot_jobs(_instance: object, _attribute: object, value: int | str) -> None:
    check_boot_jobs(value)


@attrs.frozen(kw_only=True)
class Limits:
    """What a host is asked for at most.

    :param memory_overcommit: guests' memory relative to free memory; a request for more is refused.
    :param boot_jobs: how many guests boot at once, or ``auto``: what the host can carry.
    :param uploads: to how many hosts a controller sends a template's image at once.
    :param max_clones_per_owner, max_memory_per_owner: clones, and bytes of memory of all of them,
        that one user may have on the host; None for no limit.
    """

    memory_overcommit: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    boot_jobs: int | str = attrs.field(default=AUTO, validator=_boot_jobs)
    uploads: int = attrs.field(default=8, validator=attrs.validators.in_(range(1, 65)))
    max_clones_per_owner: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    max_memory_per_owner: Size | None = None

    @property
    def per_owner(self) -> bool:
        """Whether there is a limit for each owner."""
        return (self.max_clones_per_owner, self.max_memory_per_owner) != (None, None)


def _not_empty(_instance: object, _attribute: object, value: str | None) -> None:
    if value is not None and not value.strip():
        raise InvalidRequest("seed: must not be empty")


def _destination(_instance: object, attribute: Any, value: str | None) -> None:
    """Check a destination of ssh(1): it becomes an argument of its own, and part of a proxy's."""
    if value is not None and not re.fullmatch(r"(?!-)[A-Za-z0-9_.@:-]{1,253}", value):
        raise InvalidRequest(f"{attribute.name}: not a destination for ssh: {value[:80]!r}")


@attrs.frozen(kw_only=True)
class HostSettings:
    """The settings of one host; the backends' own tables are kept unchanged.

    :param state: the folder of records, console logs, run logs and built images. QEMU must be able
        to reach it. Without it: ``/var/lib/vmcloner`` for root, else the user's own.
    :param seed: what UUIDs and MAC addresses are derived from; needed if another host has the same
        machine-id and host name.
    :param networks: those that clones from other hosts may be on; see :class:`Host`.
    :param address, ssh: of another machine: its address, and where ssh(1) finds it if that is not
        root at the address. Its state and backends are in its own settings.
    :param python: the Python there that has vmcloner. :param config: its settings file there.
    """

    state: Path | None = None
    address: str | None = attrs.field(default=None, validator=_destination)
    ssh: str | None = attrs.field(default=None, validator=_destination)
    python: str | None = None
    config: str | None = None
    seed: str | None = attrs.field(default=None, validator=_not_empty)
    networks: tuple[str, ...] = ()
    hypervisor: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    storage: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Settings:
    """All settings.

    :param carrier: which plugin carries calls to other machines (``driver``), and its own keys.
    :param file: where they were read from, None if only defaults are used.
    """

    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    hosts: Mapping[str, HostSettings] = attrs.field(factory=dict)
    groups: Mapping[str, str] = attrs.field(factory=dict)
    carrier: Mapping[str, Any] = attrs.field(factory=dict)
    file: Path | None = attrs.field(default=None, metadata={"key": False})

    @classmethod
    def load(cls, file: Path | None = None) -> Settings:
        """Read a settings file: the given one, or the first that exists, or none.

        :raises NotFound: the given file does not exist.
        :raises InvalidRequest: names file, key and reason.
        """
        if (env := os.environ.get("VMCLONER_CONFIG")) and file is None:
            file = Path(env)
        if file is not None and not exists(file):
            raise NotFound(f"settings file {file} doesn't exist")
        places = (Path(FILE), user_file(), SYSTEM / FILE)
        found = file or next(filter(exists, places), None)
        if found is None:
            return cls()
        data = read_toml(found, trusted=True)
        if "file" in data:
            raise InvalidRequest(f"{found}: unknown key 'file'")
        return attrs.evolve(structure(data, cls, where=str(found)), file=found.absolute())

    def host(self, name: str | None = None) -> Host:
        """Return the host of that name, or the default one.

        :raises NotFound: the settings do not contain it (``local`` always exists).
        :raises InvalidRequest: it is, or may be, another machine, or the default is unknown.
        """
        known, default = {LOCAL, *self.hosts}, self.defaults.host
        if name is None and default not in known:
            raise InvalidRequest(
                f"{self.file}: defaults.host: unknown host {default!r}",
                hint=did_you_mean(default, sorted(known)),
            )
        name = name or default
        if name not in known:
            raise NotFound(f"unknown host {name!r}", hint=did_you_mean(name, sorted(known)))
        table = self.hosts.get(name, HostSettings())
        self._check_local(name, table)
        state = table.state or _default_state()
        return Host(
            name=name,
            state=(self.file.parent if self.file else Path()).joinpath(state).absolute(),
            address=table.address,
            seed=table.seed,
            networks=table.networks,
            storage=self._backends(name, "storage", table.storage),
            hypervisors=self._backends(name, "hypervisor", table.hypervisor),
        )

    @property
    def remote(self) -> tuple[RemoteHost, ...]:
        """The hosts that are other machines.

        :raises InvalidRequest: one has no address, or settings that belong on the host itself.
        """
        return tuple(self._remote(name) for name in sorted(self.hosts) if name != LOCAL)

    def _remote(self, name: str) -> RemoteHost:
        table, where = self.hosts[name], f"{self.file or 'settings'}: hosts.{name}"
        if table.address is None and table.ssh is None:
            raise InvalidRequest(
                f"{where}: has no address, so nothing says which machine it is",
                hint=f"this machine's table is [hosts.{LOCAL}]",
            )
        for key in ("state", "seed", "networks", "hypervisor", "storage"):
            if getattr(table, key):
                raise InvalidRequest(
                    f"{where}.{key}: belongs into the settings on {name} itself",
                    hint=f"remove it here; there it is hosts.{LOCAL}.{key}",
                )
        return RemoteHost(
            name=name,
            ssh=table.ssh or f"root@{table.address}",
            python=table.python or REMOTE_PYTHON,
            config=table.config,
        )

    def _check_local(self, name: str, table: HostSettings) -> None:
        """Check that a host is this machine.

        :raises InvalidRequest: it is another one.
        """
        where = f"{self.file or 'settings'}: hosts.{name}"
        for key in ("address", "ssh"):
            if name == LOCAL and getattr(table, key) is not None:
                raise InvalidRequest(
                    f"{where}.{key}: {LOCAL!r} is this machine", hint="give another one a name"
                )
        if name != LOCAL:
            self._remote(name)
            raise InvalidRequest(
                f"{where}: is another machine", hint="from Python: vmcloner_core.open_hosts()"
            )

    def _backends(
        self, host: str, kind: str, tables: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, BackendTable]:
        """Return a host's backends of a kind: the default one, and those with a table."""
        names = dict.fromkeys([getattr(self.defaults, kind), *tables])
        return {name: self._backend(host, kind, name, tables.get(name, {})) for name in names}

    def _backend(self, host: str, kind: str, name: str, table: Mapping[str, Any]) -> BackendTable:
        values = dict(table)
        where = f"{self.file or 'settings'}: hosts.{host}.{kind}.{name}"
        driver = values.pop("driver", name)
        if not isinstance(driver, str):
            raise InvalidRequest(f"{where}.driver: must be a string, not {driver!r}")
        return BackendTable(name=name, driver=driver, values=values, where=where)


def user_file() -> Path:
    """Return the user's own settings file, whether it exists or not."""
    return user_folders.config() / FILE


def _default_state() -> Path:
    return Path("/var/lib/vmcloner") if os.geteuid() == 0 else user_folders.state()
