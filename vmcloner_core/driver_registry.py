"""The drivers of one host, made from its settings when first used."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import TypeVar

from vmcloner_core.drivers import (
    BootProvider,
    DriverContext,
    HypervisorDriver,
    IdentityProvider,
    ImageBuilder,
    StorageDriver,
)
from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, did_you_mean
from vmcloner_core.hooks import BootBackend, HypervisorBackend, IdentityBackend, StorageBackend
from vmcloner_core.model import BackendTable, Host
from vmcloner_core.plugins import PluginHost
from vmcloner_core.process import CommandRunner
from vmcloner_core.tomlfile import structure

D = TypeVar("D")


class DriverRegistry:
    """Makes and keeps a host's drivers, one for each name. Thread-safe."""

    def __init__(self, host: Host, plugins: PluginHost, runner: CommandRunner) -> None:
        self.host = host
        self._plugins = plugins
        self._runner = runner
        self._lock = threading.RLock()
        self._drivers: dict[tuple[str, str], StorageDriver | HypervisorDriver] = {}
        self._boots: dict[str, tuple[BootBackend, BootProvider]] = {}

    def storage(self, name: str) -> StorageDriver:
        """Return the driver of a pool; for the errors see :meth:`_made`."""
        return self._made("storage", name, StorageDriver)  # type: ignore[type-abstract]

    def hypervisor(self, name: str) -> HypervisorDriver:
        """Return the driver of a hypervisor."""
        return self._made("hypervisor", name, HypervisorDriver)  # type: ignore[type-abstract]

    def boot(self, name: str) -> tuple[BootBackend, BootProvider]:
        """Return a boot provider, with its description."""
        with self._lock:
            if name not in self._boots:
                backend = self._plugins.boot(name)
                self._boots[name] = (backend, backend.factory(self._context(name)))
            return self._boots[name]

    def identity(self, name: str) -> tuple[IdentityBackend, IdentityProvider]:
        """Return an identity provider, with its description."""
        backend = self._plugins.identity(name)
        return backend, backend.factory(self._context(name))

    def builder(self, name: str, options: Mapping[str, object], where: str) -> ImageBuilder:
        """Return an image builder.

        :param options: from a template. :param where: that template, for messages.
        :raises InvalidRequest: it takes no options, or not these.
        """
        backend, context = self._plugins.image(name), self._context(name)
        where = f"{where}: image.options"
        if backend.options is None:
            if options:
                raise InvalidRequest(f"{where}: image builder {name!r} takes no options")
            return backend.factory(context)
        made: object = structure(options, backend.options, where=where)
        return backend.factory(context, made)

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of the host's backends of a kind, defaults included."""
        return tuple(self._tables(kind))

    def check_settings(self) -> None:
        """Check the settings of all backends; a broken plugin is no matter of theirs.

        :raises InvalidRequest: one's are wrong; names file, key and reason.
        """
        for name in self.host.hypervisors:
            with contextlib.suppress(BackendError):
                self.hypervisor(name)
        for name in self.host.storage:
            with contextlib.suppress(BackendError):
                self.storage(name)

    def _tables(self, kind: str) -> Mapping[str, BackendTable]:
        return self.host.storage if kind == "storage" else self.host.hypervisors

    def close(self) -> None:
        """Close all drivers."""
        with self._lock:
            for driver in self._drivers.values():
                driver.close()
            self._drivers.clear()

    def _made(self, kind: str, name: str, contract: type[D]) -> D:
        with self._lock:
            if (kind, name) not in self._drivers:
                self._drivers[kind, name] = self._new(kind, name)
            driver = self._drivers[kind, name]
        if not isinstance(driver, contract):
            raise BackendError(f"{kind} plugin of {name!r} makes no {contract.__name__}")
        return driver

    def _new(self, kind: str, name: str) -> StorageDriver | HypervisorDriver:
        """Make a driver from the host's settings.

        :raises NotFound: no such backend. :raises BackendError: its plugin is broken.
        :raises InvalidRequest: it isn't set up on this host, or its settings are wrong, which may
            name a driver that isn't installed.
        """
        self._check_known(kind, name)
        table = self._tables(kind)[name]
        try:
            backend: StorageBackend | HypervisorBackend = getattr(self._plugins, kind)(table.driver)
        except NotFound as error:  # the name is the settings'
            raise InvalidRequest(f"{table.where}: {error.message}", hint=error.hint) from error
        values: object = structure(table.values, backend.settings, where=table.where)
        try:
            return backend.factory(self._context(name), values)
        except TypeError as error:  # an abstract method that the plugin lacks
            raise BackendError(f"{kind} plugin {table.driver!r} is broken: {error}") from error

    def _check_known(self, kind: str, name: str) -> None:
        known = self.names(kind)
        if name in known:
            return
        plugins = self._plugins.names(kind)
        word = "storage pool" if kind == "storage" else kind
        if name in plugins:
            raise InvalidRequest(
                f"{word} {name!r} isn't set up on host {self.host.name}",
                hint=f"add a table [hosts.{self.host.name}.{kind}.{name}] to the settings",
            )
        raise NotFound(f"unknown {word} {name!r}", hint=did_you_mean(name, known))

    def _context(self, name: str) -> DriverContext:
        return DriverContext(host=self.host, name=name, runner=self._runner)
