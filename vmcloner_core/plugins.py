"""The plugin host: the one place that finds, loads and registers plugins, and calls hooks.

Each plugin is an entry point and is imported when its name is used. pluggy registers it, which
replays the registration hooks, and the returned descriptor is checked here. A plugin that fails,
or is built for another driver API, is reported by :meth:`PluginHost.infos` and harms no other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, TypeVar

import attrs
import pluggy

from vmcloner_core import entry_points
from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, VmclonerError, did_you_mean
from vmcloner_core.hooks import (
    API_VERSION,
    PROJECT,
    Backend,
    BootBackend,
    Hooks,
    HypervisorBackend,
    IdentityBackend,
    ImageBackend,
    StorageBackend,
)
from vmcloner_core.model import Labels, check_mac
from vmcloner_core.plan import Plan, ProgressEvent, RunResult, StepEvent

log = logging.getLogger(__name__)
B = TypeVar("B", StorageBackend, HypervisorBackend, BootBackend, ImageBackend, IdentityBackend)
KINDS: dict[str, type[Any] | None] = {
    "storage": StorageBackend,
    "hypervisor": HypervisorBackend,
    "boot": BootBackend,
    "identity": IdentityBackend,
    "image": ImageBackend,
    "observer": None,
}
"""Kinds of plugin, by the last part of their entry point group, and what each registers."""
OWN = "vmcloner"
"""The distribution that this is."""
OBSERVER_API = "VMCLONER_API"
"""Optional attribute of an observer: the version of the driver API that it is built for."""


@attrs.frozen(kw_only=True)
class PluginInfo:
    """One plugin as found on this machine.

    :param state: ``ok``, ``broken``, ``duplicate`` or ``incompatible``.
    :param api: the version of the driver API that it declares, None if it declares none.
    """

    name: str
    kind: str
    distribution: str
    version: str
    state: str = "ok"
    api: int | None = None
    description: str = ""
    error: str = ""


class PluginHost:
    """Loads plugins by kind and name, each once. Thread-safe.

    :param plugins: objects with hook implementations (backends too), beside the entry points.
    :raises BackendError: one registers something else than a backend for this driver API.
    """

    def __init__(self, plugins: Sequence[object] = ()) -> None:
        self._lock = threading.RLock()
        self._loaded: dict[tuple[str, str], Backend] = {}
        self._received: list[object] = []
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        for hook in (
            self._manager.hook.vmcloner_storage_backend,
            self._manager.hook.vmcloner_hypervisor_backend,
            self._manager.hook.vmcloner_boot_provider,
            self._manager.hook.vmcloner_image_builder,
            self._manager.hook.vmcloner_identity_provider,
        ):
            hook.call_historic(result_callback=self._received.append, kwargs={})
        self._observers_loaded = False
        for plugin in plugins:
            self._manager.register(plugin)
        for found in self._received:
            kind = _kind_of(found)
            backend = self._check(kind, None, found)
            _check_api(f"{kind} plugin {backend.name!r}", backend.api)
            self._loaded[kind, backend.name] = backend

    # --- backends ---

    def storage(self, name: str) -> StorageBackend:
        """Return a storage backend's descriptor; see :meth:`_backend` for the errors."""
        return self._backend("storage", name, StorageBackend)

    def hypervisor(self, name: str) -> HypervisorBackend:
        """Return a hypervisor backend's descriptor."""
        return self._backend("hypervisor", name, HypervisorBackend)

    def boot(self, name: str) -> BootBackend:
        """Return a boot provider's descriptor."""
        return self._backend("boot", name, BootBackend)

    def image(self, name: str) -> ImageBackend:
        """Return an image builder's descriptor."""
        return self._backend("image", name, ImageBackend)

    def identity(self, name: str) -> IdentityBackend:
        """Return an identity provider's descriptor."""
        return self._backend("identity", name, IdentityBackend)

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of a kind's plugins, without importing any."""
        loaded = {name for of, name in self._loaded if of == kind}
        return tuple(sorted(loaded | {entry.name for entry in _entries(kind)}))

    def owner(self, kind: str, name: str) -> str | None:
        """Return the distributions that provide a plugin, None for an object of this process."""
        return _owners(kind, name) or None

    def _backend(self, kind: str, name: str, expected: type[B]) -> B:
        """Return the descriptor of the plugin of that kind and name.

        :raises NotFound: there is none. :raises BackendError: it is broken, or built for another
            driver API, or there are two.
        """
        backend = self._once(kind, name)
        if backend.api != API_VERSION:
            _check_api(f"{kind} plugin {name!r} of {_owners(kind, name)}", backend.api)
        assert isinstance(backend, expected)  # noqa: S101 - see _check
        return backend

    def _once(self, kind: str, name: str) -> Backend:
        with self._lock:
            if (kind, name) not in self._loaded:
                self._loaded[kind, name] = self._load(kind, name)
            return self._loaded[kind, name]

    def _load(self, kind: str, name: str) -> Backend:
        entries = [entry for entry in _entries(kind) if entry.name == name]
        if not entries:
            known = self.names(kind)
            raise NotFound(f"unknown {_KIND_WORDS[kind]} {name!r}", hint=did_you_mean(name, known))
        if len(entries) > 1:
            raise BackendError(
                f"{kind} plugin {name!r} comes from {_owners(kind, name)}",
                hint="uninstall one of them",
            )
        try:
            return self._registered(kind, name, entries[0].load())
        except VmclonerError:
            raise
        except Exception as error:  # a plugin's import may raise anything
            log.debug("plugin %s %s", kind, name, exc_info=True)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BackendError(
                f"{kind} plugin {name!r} of {_owners(kind, name)} is broken: {reason}",
                hint="vmcloner plugin list",
            ) from error

    def _registered(self, kind: str, name: str, plugin: object) -> Backend:
        self._received.clear()
        self._manager.register(plugin, name=f"{kind}:{name}")
        try:
            if not any(_is_foreign(found) for found in self._received):
                self._manager.check_pending()  # the hooks of another version may be unknown here
            if len(self._received) != 1:
                raise TypeError(f"it registers {len(self._received)} backends, not one")
            backend = self._check(kind, name, self._received[0])
        except Exception:
            self._manager.unregister(plugin)
            raise
        if _is_foreign(backend):
            self._manager.unregister(plugin)
        return backend

    @staticmethod
    def _check(kind: str, name: str | None, found: object) -> Backend:
        expected = KINDS[kind]
        if expected is None or not isinstance(found, expected):
            raise TypeError(f"it registers a {type(found).__name__}")
        if name is not None and found.name != name:
            raise ValueError(f"it registers the name {found.name!r}")
        missing = sorted(getattr(found.factory, "__abstractmethods__", ()))
        if missing and not _is_foreign(found):
            raise TypeError(f"{found.factory.__name__} lacks {', '.join(missing)}")
        backend: Backend = found
        return backend

    def infos(self) -> tuple[PluginInfo, ...]:
        """Load every plugin; return their states by kind and name."""
        found = []
        for kind in KINDS:
            entries = entry_points.with_distributions(f"vmcloner.{kind}")
            for entry in sorted(entries, key=lambda e: e.name):
                found.append(self._info(kind, entry))
        return tuple(found)

    def _info(self, kind: str, entry: metadata.EntryPoint) -> PluginInfo:
        distribution, version = entry_points.provenance(entry)
        info = PluginInfo(name=entry.name, kind=kind, distribution=distribution, version=version)
        try:
            if kind == "observer":
                info = attrs.evolve(info, api=getattr(entry.load(), OBSERVER_API, None))
            else:
                backend = self._once(kind, entry.name)
                info = attrs.evolve(info, api=backend.api, description=backend.description)
            if info.api not in (API_VERSION, None):
                return attrs.evolve(info, state="incompatible", error=_other_api(info.api))
            return info
        except VmclonerError as error:
            twins = [other for other in _entries(kind) if other.name == entry.name]
            state = "duplicate" if len(twins) > 1 else "broken"
            return attrs.evolve(info, state=state, error=error.message)
        except Exception as error:  # an observer's import may raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return attrs.evolve(info, state="broken", error=reason)

    # --- hooks ---

    def load_observers(self) -> None:
        """Load the plugins of the group ``vmcloner.observer``; one that fails is only reported."""
        with self._lock:
            if self._observers_loaded:
                return
            self._observers_loaded = True
            for entry in sorted(_entries("observer"), key=lambda e: e.name):
                name = f"observer:{entry.name}"
                try:
                    plugin = entry.load()
                    _check_api("it", getattr(plugin, OBSERVER_API, API_VERSION))
                    self._manager.register(plugin, name=name)
                    self._manager.check_pending()
                except Exception as error:  # a plugin's import may raise anything
                    self._manager.unregister(name=name)
                    log.warning("observer plugin %r is not used: %s", entry.name, error)

    def preflight(self, plan: Plan) -> None:
        """Let plugins veto a plan.

        :raises VmclonerError: a plugin's veto. :raises BackendError: a plugin's failure.
        """
        try:
            self._manager.hook.vmcloner_preflight(plan=plan)
        except VmclonerError:
            raise
        except Exception as error:  # a failing preflight counts as a veto
            raise BackendError(f"a plugin's preflight failed: {error}") from error

    def clone_mac(self, labels: Labels, nic: int, attempt: int) -> str | None:
        """Return a MAC policy's address, or None if there is no policy.

        :raises InvalidRequest: the policy's answer is no unicast MAC address.
        """
        found = self._manager.hook.vmcloner_clone_mac(labels=labels, nic=nic, attempt=attempt)
        try:
            return None if found is None else check_mac(found)
        except InvalidRequest as error:
            raise InvalidRequest(f"the MAC policy gave {error.message}") from error

    def plan_ready(self, plan: Plan) -> None:
        """Tell observers of a plan that is about to be carried out."""
        self._observe(self._manager.hook.vmcloner_plan_ready, plan=plan)

    def step_changed(self, event: StepEvent) -> None:
        """Tell observers of a step."""
        said = f": {event.error}" if event.error is not None else ""
        log.debug("%s %s %s%s", event.clone, event.step, event.status.value, said)
        self._observe(self._manager.hook.vmcloner_step_changed, event=event)

    def progress(self, event: ProgressEvent) -> None:
        """Tell observers of a long step's bytes."""
        self._observe(self._manager.hook.vmcloner_progress, event=event)

    def clone_ready(self, run: str, clone: str) -> None:
        """Tell observers of a clone that has completed its steps."""
        self._observe(self._manager.hook.vmcloner_clone_ready, run=run, clone=clone)

    def run_finished(self, result: RunResult) -> None:
        """Tell observers of a run's end."""
        self._observe(self._manager.hook.vmcloner_run_finished, result=result)

    def _observe(self, hook: pluggy.HookCaller, **values: object) -> None:
        # One by one, since pluggy's broadcast stops at the first exception.
        with self._lock:
            for implementation in hook.get_hookimpls():
                wanted = {name: values[name] for name in implementation.argnames}
                try:
                    implementation.function(**wanted)
                except KeyboardInterrupt:
                    raise
                except BaseException:  # an observer can't break a run, not by sys.exit either
                    log.warning("observer %s failed", implementation.plugin_name, exc_info=True)

    def watch(self, observer: object) -> Callable[[], None]:
        """Register an observer; returns the function that unregisters it."""
        self._manager.register(observer)

        def stop() -> None:
            self._manager.unregister(observer)

        return stop


_KIND_WORDS = {
    "storage": "storage backend",
    "hypervisor": "hypervisor",
    "boot": "boot provider",
    "identity": "identity provider",
    "image": "image builder",
}


def _kind_of(found: object) -> str:
    for kind, expected in KINDS.items():
        if expected is not None and isinstance(found, expected):
            return kind
    raise BackendError(f"a plugin registers a {type(found).__name__}, not a backend")


def _is_foreign(found: object) -> bool:
    """Tell whether what a plugin registers is a backend for another driver API."""
    return isinstance(found, Backend) and found.api != API_VERSION


def _check_api(what: str, api: int) -> None:
    """Check the version of the driver API that a plugin is built for.

    :raises BackendError: it is another one.
    """
    if api != API_VERSION:
        raise BackendError(
            f"{what} is {_other_api(api)}", hint="install a version of it for this vmcloner"
        )


def _other_api(api: int | None) -> str:
    return f"built for driver API {api}, this vmcloner has driver API {API_VERSION}"


def _entries(kind: str) -> tuple[metadata.EntryPoint, ...]:
    return entry_points.of_group(f"vmcloner.{kind}")


def _owners(kind: str, name: str) -> str:
    """Return the names of the distributions that provide a plugin."""
    entries = entry_points.with_distributions(f"vmcloner.{kind}")
    owners = {entry_points.provenance(entry)[0] for entry in entries if entry.name == name}
    return " and ".join(sorted(owners))
