"""The drivers of one host, made from its settings when first used."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vmcloner_core.contracts import check_driver
from vmcloner_core.deadlines import Late, Unanswered, answers, instance
from vmcloner_core.drivers import (
    BootProvider,
    DriverContext,
    HypervisorDriver,
    IdentityProvider,
    ImageBuilder,
    StorageDriver,
)
from vmcloner_core.entry_points import OWN
from vmcloner_core.errors import (
    BackendError,
    InvalidRequest,
    NotFound,
    VmclonerError,
    did_you_mean,
)
from vmcloner_core.hooks import BootBackend, HypervisorBackend, IdentityBackend, StorageBackend
from vmcloner_core.model import BackendTable, Host, HostResources, Outcome, Volume
from vmcloner_core.outcomes import Backend, asked, settled
from vmcloner_core.plugins import PluginHost
from vmcloner_core.process import CommandRunner
from vmcloner_core.tomlfile import structure
from vmcloner_core.wrong_types import wrong_type

C = TypeVar("C")
D = TypeVar("D", StorageDriver, HypervisorDriver)
T = TypeVar("T")
CLOSING = 5.0
"""Seconds for all drivers to release what they hold."""
log = logging.getLogger(__name__)


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
            known = self._boots.get(name)
        if known is not None:
            return known
        backend = self._plugins.boot(name)
        made = self._built("boot", name, BootProvider, backend.factory)  # type: ignore[type-abstract]
        with self._lock:
            return self._boots.setdefault(name, (backend, made))

    def identity(self, name: str) -> tuple[IdentityBackend, IdentityProvider]:
        """Return an identity provider, with its description."""
        backend = self._plugins.identity(name)
        return backend, self._built("identity", name, IdentityProvider, backend.factory)  # type: ignore[type-abstract]

    def builder(self, name: str, options: Mapping[str, object], where: str) -> ImageBuilder:
        """Return an image builder.

        :param options: from a template. :param where: that template, for messages.
        :raises InvalidRequest: it takes no options, or not these.
        """
        backend = self._plugins.image(name)
        where = f"{where}: image.options"
        if backend.options is None:
            if options:
                raise InvalidRequest(f"{where}: image builder {name!r} takes no options")
            return self._built("image", name, ImageBuilder, backend.factory)  # type: ignore[type-abstract]
        made: object = structure(options, backend.options, where=where)
        return self._built("image", name, ImageBuilder, backend.factory, made)  # type: ignore[type-abstract]

    def ask(
        self,
        kind: str,
        name: str,
        call: str,
        question: Callable[[Any], object],
        answer: type[T],
    ) -> T:
        """Return what a backend answers, within :data:`deadlines.DEADLINE`.

        :param call: what is asked, for messages. :param question: asks its driver.
        :param answer: the type that the answer must have.
        :raises BackendError: it gives none, or another: names the backend, and whose plugin it is.
        :raises VmclonerError: what it raises.
        """
        driver = self.storage(name) if kind == "storage" else self.hypervisor(name)

        def ask() -> T:
            found = instance(question(driver), answer)
            if wrong := wrong_type(found, answer):
                raise Unanswered(f"its plugin gave a {answer.__name__} whose {wrong}")
            return found

        return asked(self.backend(kind, name, call), ask)

    def resources(self, hypervisor: str) -> HostResources:
        """Return what a hypervisor has for guests; raises as :meth:`ask`."""
        return self.ask(
            "hypervisor", hypervisor, "resources", lambda d: d.resources(), HostResources
        )

    def backend(self, kind: str, name: str, call: str = "") -> Backend:
        """Return a backend for messages, about a method of it if that is given."""
        word = "boot provider" if kind == "boot" else kind
        return Backend(f"{word} {name!r}", functools.partial(self.whose, kind, name), call)

    def whose(self, kind: str, name: str) -> str:
        """Return which plugin a backend is of, and that one's distribution, for a message's end.

        Without a name that is the backend's too, and without a distribution that is vmcloner, or
        unknown since a program gave the engine the plugin: empty if nothing is left.
        """
        tables = self._tables(kind) if kind in ("storage", "hypervisor") else {}
        plugin = tables[name].driver if name in tables else name
        owner = self._plugins.owner(kind, plugin)
        words = [] if plugin == name else [repr(plugin)]
        words += [] if owner in (None, OWN) else [f"of {owner}"]
        return f"; its plugin is {' '.join(words)}" if words else ""

    def activate(self, pool: str, volumes: Sequence[Volume]) -> list[Outcome[None]]:
        """Activate volumes of a pool; returns the outcome of each, whatever the pool does."""
        return self._switched(pool, "activate", volumes)

    def deactivate(self, pool: str, volumes: Sequence[Volume]) -> list[Outcome[None]]:
        """Deactivate volumes of a pool; as :meth:`activate`."""
        return self._switched(pool, "deactivate", volumes)

    def _switched(self, pool: str, call: str, volumes: Sequence[Volume]) -> list[Outcome[None]]:
        def switch() -> Iterator[Outcome[None]]:
            driver = self.storage(pool)
            return driver.activate(volumes) if call == "activate" else driver.deactivate(volumes)

        names = [volume.name for volume in volumes]
        return settled(switch, names, self.backend("storage", pool, call))

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
            closing = {key: driver.close for key, driver in self._drivers.items()}
            self._drivers.clear()
        for (kind, name), closed in answers(closing, CLOSING).items():
            if isinstance(closed, VmclonerError):
                log.warning("%s %r: closing: %s%s", kind, name, closed, self.whose(kind, name))

    def _made(self, kind: str, name: str, contract: type[D]) -> D:
        with self._lock:
            driver = self._drivers.get((kind, name))
        if driver is None:
            # Not under the lock: a factory that hangs holds up nobody else.
            made = self._new(kind, name, contract)
            with self._lock:
                driver = self._drivers.setdefault((kind, name), made)
            if driver is not made:  # another thread was faster
                made.close()
        assert isinstance(driver, contract)  # noqa: S101 - see _built
        return driver

    def _new(self, kind: str, name: str, contract: type[D]) -> D:
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
        return self._built(kind, name, contract, backend.factory, values)

    def _built(
        self, kind: str, name: str, contract: type[C], factory: Callable[..., Any], *values: object
    ) -> C:
        """Return what a plugin's factory makes for a backend, if it fulfils its contract.

        :raises BackendError: the factory fails, hangs, or makes something else.
        """
        make = functools.partial(factory, self._context(name), *values)
        made: object = answers({name: make})[name]  # a plugin's factory may raise anything
        if isinstance(made, Late):
            raise self._broken(kind, name, f"its factory gave {made.message}")
        if isinstance(made, Unanswered):
            raise self._broken(kind, name, made.message) from made.__cause__
        if isinstance(made, VmclonerError):
            raise made
        wrong = check_driver(made, contract)
        if wrong is not None:
            raise self._broken(kind, name, wrong)
        assert isinstance(made, contract)  # noqa: S101 - see check_driver
        return made

    def _broken(self, kind: str, name: str, wrong: str) -> BackendError:
        table = self._tables(kind).get(name) if kind in ("storage", "hypervisor") else None
        plugin = name if table is None else table.driver
        message = f"{kind} plugin {plugin!r} is broken: {wrong}{self.whose(kind, name)}"
        return BackendError(message, hint="vmcloner plugin list")

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
