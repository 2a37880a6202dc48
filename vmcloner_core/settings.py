"""Settings: one TOML file, the first that exists of ``$VMCLONER_CONFIG``, ``./vmcloner.toml``, the
user's (``~/.config/vmcloner/vmcloner.toml``) and ``/etc/vmcloner/vmcloner.toml``.

Everything has a default, so none is needed. A full one::

    [defaults]
    host = "local"
    hypervisor = "kvm"
    storage = "files"

    [limits]
    memory_overcommit = 1.5         # guests' memory may be so many times what is free

    [hosts.local]
    state = "/var/lib/vmcloner"     # console logs, run logs, built templates

    [hosts.local.hypervisor.kvm]    # keys: see the backend's documentation
    uri = "qemu:///system"

    [hosts.local.storage.fast]      # a pool named "fast", kept by the backend "files"
    driver = "files"
    path = "/srv/fast"

A table under ``storage`` or ``hypervisor`` names a backend instance; ``driver`` names the backend
and may be left out where both names are the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from platformdirs import user_config_path, user_state_path

from vmcloner_core.errors import InvalidRequest, NotFound, did_you_mean
from vmcloner_core.model import Host
from vmcloner_core.tomlfile import read_toml, structure

FILE = "vmcloner.toml"
SYSTEM = Path("/etc/vmcloner")


@attrs.frozen(kw_only=True)
class Defaults:
    """What is used where a request names nothing."""

    host: str = "local"
    hypervisor: str = "kvm"
    storage: str = "files"


@attrs.frozen(kw_only=True)
class Limits:
    """Where a request is refused. ``memory_overcommit``: guests' memory over what is free."""

    memory_overcommit: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))


@attrs.frozen(kw_only=True)
class HostSettings:
    """What settings say of one host; the backends' own tables are kept as they are."""

    state: Path | None = None
    hypervisor: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    storage: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class BackendSettings:
    """One table of a backend: which driver, and the driver's own keys."""

    name: str
    driver: str
    values: Mapping[str, Any]
    where: str


@attrs.frozen(kw_only=True)
class Settings:
    """All settings. ``file``: where they were read from, None for the defaults alone."""

    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    hosts: Mapping[str, HostSettings] = attrs.field(factory=dict)
    file: Path | None = None

    @classmethod
    def load(cls, file: Path | None = None) -> Settings:
        """Read a settings file: the one that is named, or the first that exists, or none.

        :raises NotFound: the file that is named doesn't exist.
        :raises InvalidRequest: names file, key and reason.
        """
        if (env := os.environ.get("VMCLONER_CONFIG")) and file is None:
            file = Path(env)
        if file is not None and not file.exists():
            raise NotFound(f"settings file {file} doesn't exist")
        places = (Path(FILE), user_config_path("vmcloner") / FILE, SYSTEM / FILE)
        found = file or next((place for place in places if place.exists()), None)
        if found is None:
            return cls()
        data = read_toml(found)
        if "file" in data:
            raise InvalidRequest(f"{found}: unknown key 'file'")
        return attrs.evolve(structure(data, cls, where=str(found)), file=found.absolute())

    def host(self, name: str | None = None) -> Host:
        """Return the host of that name, or the default one.

        :raises NotFound: settings don't have it (``local`` always exists).
        """
        name = name or self.defaults.host
        known = {"local", *self.hosts}
        if name not in known:
            raise NotFound(f"unknown host {name!r}", hint=did_you_mean(name, sorted(known)))
        state = self._host(name).state or _default_state()
        return Host(name=name, state=state.absolute())

    def storage(self, host: str, name: str) -> BackendSettings:
        """Return a pool's settings; a pool that isn't there is the backend of that name."""
        return self._backend(host, "storage", name)

    def hypervisor(self, host: str, name: str) -> BackendSettings:
        """Return a hypervisor's settings, likewise."""
        return self._backend(host, "hypervisor", name)

    def names(self, host: str, kind: str) -> tuple[str, ...]:
        """Return the names of a host's backends: those in the settings, and the default one."""
        default = getattr(self.defaults, kind)
        return tuple(dict.fromkeys([default, *getattr(self._host(host), kind)]))

    def _host(self, name: str) -> HostSettings:
        return self.hosts.get(name, HostSettings())

    def _backend(self, host: str, kind: str, name: str) -> BackendSettings:
        table = dict(getattr(self._host(host), kind).get(name, {}))
        where = f"{self.file or 'settings'}: hosts.{host}.{kind}.{name}"
        driver = table.pop("driver", name)
        if not isinstance(driver, str):
            raise InvalidRequest(f"{where}.driver: must be a string, not {driver!r}")
        return BackendSettings(name=name, driver=driver, values=table, where=where)


def _default_state() -> Path:
    return Path("/var/lib/vmcloner") if os.geteuid() == 0 else user_state_path("vmcloner")
