"""Open the engine of one host, or the controller of several, as the settings say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vmcloner_core import entry_points
from vmcloner_core.engine import Engine
from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, did_you_mean
from vmcloner_core.hosts.beside import Beside
from vmcloner_core.hosts.carrier import Carrier, InProcess, Mixed
from vmcloner_core.hosts.controller import Controller
from vmcloner_core.hosts.groups import named
from vmcloner_core.model import Host, RemoteHost
from vmcloner_core.plugins import PluginHost
from vmcloner_core.settings import LOCAL, Settings
from vmcloner_core.tomlfile import structure

CARRIERS = "vmcloner.carrier"
DEFAULT = "mitogen"
EXTRAS = {"mitogen": "cluster"}
"""What installs what a carrier of ours needs, if that is not named like the carrier."""


def open_hosts(
    *,
    config: Path | None = None,
    host: str | None = None,
    without: Sequence[str] = (),
    plugins: Sequence[object] = (),
) -> Engine | Controller:
    """Return the engine of this machine, or a controller of the hosts in the settings.

    A controller if the settings name other machines. This machine is one of its hosts if it has a
    table, ``[hosts.local]``, in them.

    :param host: one host only, by its name in the settings.
    :param without: hosts to leave out: names, node sets and groups.
    :raises NotFound: a host isn't in the settings. :raises InvalidRequest: the settings are wrong.
    :raises BackendError: what carries calls to other machines isn't installed.
    """
    settings = Settings.load(config)
    remote = settings.remote
    if host is None and settings.defaults.host != LOCAL:
        host = settings.defaults.host
    if not remote or host == LOCAL:
        if without:
            raise InvalidRequest(
                "--without needs several hosts",
                hint="leave out --host" if host is not None else "name them in the settings",
            )
        return Engine.open(settings=settings, host=host, plugins=plugins)
    hosts = [*_own(settings), *remote]
    if host is not None:
        if without:
            raise InvalidRequest(
                f"--without can't be used with one host: only {host} is worked on",
                hint="give --host or --without, not both",
            )
        known = [each.name for each in hosts]
        hosts = [each for each in hosts if each.name == host]
        if not hosts:
            raise NotFound(f"unknown host {host!r}", hint=did_you_mean(host, known))
    return Controller(
        settings,
        PluginHost(plugins),
        _carrier(settings, hosts),
        hosts,
        _folders(settings),
        version=metadata.version("vmcloner"),
        without=named(settings, without),
    )


def _own(settings: Settings) -> list[RemoteHost]:
    """Return this machine, if the settings have a table for it."""
    if LOCAL not in settings.hosts:
        return []
    return [RemoteHost(name=LOCAL, ssh=LOCAL, python="")]


def _folders(settings: Settings) -> Host:
    """Return the controller's own folders: those of this machine."""
    return settings.host(LOCAL)


def _carrier(settings: Settings, hosts: Sequence[RemoteHost]) -> Carrier:
    own = InProcess(
        {
            each.name: Beside(
                lambda plugin: Engine.open(settings=settings, host=LOCAL, plugins=[plugin])
            )
            for each in hosts
            if each.name == LOCAL
        }
    )
    if len(own.hosts) == len(hosts):
        return own
    return Mixed(own, _to_others(settings.carrier, f"{settings.file or 'settings'}: carrier"))


def _to_others(table: Mapping[str, Any], where: str) -> Carrier:
    """Return the carrier to other machines that the table ``[carrier]`` of the settings chooses."""
    values = dict(table)
    name = values.pop("driver", DEFAULT)
    entries = {entry.name: entry for entry in entry_points.of_group(CARRIERS)}
    if name not in entries:
        raise InvalidRequest(
            f"{where}.driver: unknown carrier {name!r}", hint=did_you_mean(str(name), [*entries])
        )
    try:
        kind = entries[name].load()
    except ImportError as error:
        raise BackendError(
            f"other hosts need {error.name}, which is not installed",
            hint=f"pip install 'vmcloner[{EXTRAS.get(name, name)}]'",
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Carrier)):
        raise BackendError(f"carrier {name!r} is not a Carrier")
    if kind.settings is not None:
        return kind(structure(values, kind.settings, where=where))  # type: ignore[call-arg]
    if values:
        raise InvalidRequest(f"{where}: carrier {name!r} has no settings: {', '.join(values)}")
    return kind()
