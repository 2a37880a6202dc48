"""The plugin host: the one place that finds, loads and registers plugins, and calls hooks.

Each plugin is an entry point and is imported when its name is used. pluggy registers it, which
replays the registration hooks, and the returned descriptor is checked here. A plugin that fails,
or is built for another driver API, is reported by :meth:`PluginHost.infos` and harms no other.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pluggy

from vmcloner_core import entry_points
from vmcloner_core.contracts import check_class, check_driver
from vmcloner_core.deadlines import Late, Unanswered, answers
from vmcloner_core.drivers import (
    BootProvider,
    DriverContext,
    HypervisorDriver,
    IdentityProvider,
    ImageBuilder,
    StorageDriver,
)
from vmcloner_core.errors import (
    BackendError,
    InvalidRequest,
    NotFound,
    VmclonerError,
    did_you_mean,
    said,
)
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
from vmcloner_core.model import Clone, Host, Labels, Lease, check_mac
from vmcloner_core.plan import (
    Event,
    Plan,
    ProgressEvent,
    RunResult,
    Sample,
    Seen,
    StepEvent,
    StepStatus,
    Waiting,
)
from vmcloner_core.process import LocalRunner

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
CONTRACTS: dict[str, type[Any]] = {
    "storage": StorageDriver,
    "hypervisor": HypervisorDriver,
    "boot": BootProvider,
    "identity": IdentityProvider,
    "image": ImageBuilder,
}
"""What the factories of each kind make."""
IMPORTING = 10.0
"""Seconds for the import of one plugin where all are listed."""
OBSERVING = 30.0
"""Seconds for an observer to take note of an event."""
_OBSERVER = "observer:"
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
        self._manager = _new_manager()
        for hook in (
            self._manager.hook.vmcloner_storage_backend,
            self._manager.hook.vmcloner_hypervisor_backend,
            self._manager.hook.vmcloner_boot_provider,
            self._manager.hook.vmcloner_image_builder,
            self._manager.hook.vmcloner_identity_provider,
        ):
            hook.call_historic(result_callback=self._received.append, kwargs={})
        self._observers_loaded = False
        self._faulty: set[str] = set()
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
        entry = entries[0]
        if len(entries) > 1:
            entry = entry_points.chosen(f"{kind} plugin {name!r}", f"vmcloner.{kind}", entries)
        try:
            return self._registered(kind, name, entry.load())
        except (VmclonerError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a plugin's import may raise anything, or end the process
            log.debug("plugin %s %s", kind, name, exc_info=True)
            raise BackendError(
                f"{kind} plugin {name!r} of {_owners(kind, name)} is broken: {said(error)}",
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
        except BaseException:
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
        if isinstance(found.factory, type) and not _is_foreign(found):
            wrong = check_class(found.factory, CONTRACTS[kind])
            if wrong is not None:
                raise TypeError(wrong)
        backend: Backend = found
        return backend

    def infos(self) -> tuple[PluginInfo, ...]:
        """Load every plugin; return their states by kind and name.

        Each import has :data:`IMPORTING` seconds. Factories are called, with default settings.
        """
        found = []
        for kind in KINDS:
            entries = entry_points.with_distributions(f"vmcloner.{kind}")
            for entry in sorted(entries, key=lambda e: e.name):
                found.append(self._info(kind, entry))
        return tuple(found)

    def _info(self, kind: str, entry: metadata.EntryPoint) -> PluginInfo:
        distribution, version = entry_points.provenance(entry)
        info = PluginInfo(name=entry.name, kind=kind, distribution=distribution, version=version)
        twins = entry_points.twins(entry)
        if twins:
            return attrs.evolve(info, state="duplicate", error=twins)
        # In a thread, since an import may hang; the loading below then finds it imported.
        plugin = answers({entry.name: entry.load}, IMPORTING)[entry.name]
        if isinstance(plugin, VmclonerError):
            return attrs.evolve(info, state="broken", error=plugin.message)
        try:
            if kind == "observer":
                info = attrs.evolve(info, api=getattr(plugin, OBSERVER_API, None))
            else:
                backend = self._once(kind, entry.name)
                info = attrs.evolve(info, api=backend.api, description=backend.description)
            if info.api not in (API_VERSION, None):
                return attrs.evolve(info, state="incompatible", error=_other_api(info.api))
            if kind == "observer":
                _register_observer(_new_manager(), "observer", plugin)
            else:
                _try_factory(kind, backend)
            return info
        except KeyboardInterrupt:
            raise
        except VmclonerError as error:
            return attrs.evolve(info, state="broken", error=error.message)
        except BaseException as error:  # a plugin may raise anything
            return attrs.evolve(info, state="broken", error=said(error))

    # --- hooks ---

    def load_observers(self) -> None:
        """Load the plugins of the group ``vmcloner.observer``; one that fails is only reported."""
        with self._lock:
            if self._observers_loaded:
                return
            self._observers_loaded = True
            for entry in sorted(_entries("observer"), key=lambda e: e.name):
                try:
                    _register_observer(self._manager, f"{_OBSERVER}{entry.name}", entry.load())
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # a plugin's import may raise anything
                    why = error.message if isinstance(error, VmclonerError) else said(error)
                    owner = _owners("observer", entry.name)
                    log.warning("observer plugin %r of %s is not used: %s", entry.name, owner, why)

    def preflight(self, plan: Plan) -> None:
        """Let plugins veto a plan.

        :raises VmclonerError: a plugin's veto. :raises BackendError: a plugin's failure.
        """
        self._policy(self._manager.hook.vmcloner_preflight, plan=plan)

    def clone_mac(self, labels: Labels, nic: int, attempt: int) -> str | None:
        """Return a MAC policy's address, or None if there is no policy.

        :raises InvalidRequest: the policy's answer is no unicast MAC address.
        """
        hook = self._manager.hook.vmcloner_clone_mac
        found = self._policy(hook, labels=labels, nic=nic, attempt=attempt)
        try:
            return None if found is None else check_mac(found)
        except InvalidRequest as error:
            raise InvalidRequest(f"the MAC policy gave {error.message}") from error

    @staticmethod
    def _policy(hook: pluggy.HookCaller, **values: object) -> Any:
        """Return what policies answer. One that fails counts as a veto.

        :raises BackendError: names the hook and the failure. :raises VmclonerError: a veto.
        """
        call = functools.partial(hook, **values)
        what = hook.name.removeprefix("vmcloner_")
        found: object
        try:
            if not any(each.plugin_name.startswith(_OBSERVER) for each in hook.get_hookimpls()):
                return call()
            found = answers({what: call})[what]
        except (VmclonerError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit too
            found = Unanswered(said(error))
            found.__cause__ = error
        if isinstance(found, Unanswered):
            message = f"a plugin's {what} failed: {found.message}{_culprit(hook, found.__cause__)}"
            raise BackendError(message, hint="vmcloner plugin list") from found
        if isinstance(found, VmclonerError):
            whose = _culprit(hook, found)
            veto = whose.replace("it is", "a veto of")
            if not found.message.endswith(veto):
                found.message += veto
            if type(found) is VmclonerError:  # a plugin need not choose an exit code
                raise InvalidRequest(found.message, hint=found.hint) from found
            raise found
        return found

    def plan_ready(self, plan: Plan) -> None:
        """Tell observers of a plan that is about to be carried out."""
        self._observe(self._manager.hook.vmcloner_plan_ready, plan=plan)

    def step_changed(self, event: StepEvent) -> None:
        """Tell observers of a step."""
        said = f": {event.error}" if event.error is not None else ""
        ready = event.step == "wait" and event.status in (StepStatus.DONE, StepStatus.UNCHANGED)
        what = "ready" if ready else f"{event.step} {event.status.value}"
        log.debug("%s %s%s", event.clone, what, said)
        self._observe_event(self._manager.hook.vmcloner_step_changed, event=event)

    def progress(self, event: ProgressEvent) -> None:
        """Tell observers of a long step's bytes."""
        self._observe(self._manager.hook.vmcloner_progress, event=event)

    def waiting(self, run: str, waiting: Waiting) -> None:
        """Tell observers what clones that aren't ready are doing."""
        self._observe(self._manager.hook.vmcloner_waiting, run=run, waiting=waiting)

    def clone_seen(self, seen: Seen) -> None:
        """Tell observers what was first seen of a clone."""
        self._observe_event(self._manager.hook.vmcloner_clone_seen, seen=seen)

    def host_sampled(self, sample: Sample) -> None:
        """Tell observers how busy the host is."""
        self._observe_event(self._manager.hook.vmcloner_host_sampled, sample=sample)

    def run_stopping(self, run: str, calls: Mapping[str, int]) -> None:
        """Tell observers that a run was asked to stop."""
        self._observe(self._manager.hook.vmcloner_run_stopping, run=run, calls=calls)

    def lease_expiring(self, clone: Clone, lease: Lease, left: float) -> None:
        """Tell observers of a clone whose lease ends in ``left`` seconds."""
        hook = self._manager.hook.vmcloner_lease_expiring
        self._observe(hook, clone=clone, lease=lease, left=left)

    def clone_ready(self, run: str, clone: str) -> None:
        """Tell observers of a clone that has completed its steps."""
        self._observe(self._manager.hook.vmcloner_clone_ready, run=run, clone=clone)

    def run_finished(self, result: RunResult) -> None:
        """Tell observers of a run's end."""
        self._observe(self._manager.hook.vmcloner_run_finished, result=result)

    def _observe_event(self, hook: pluggy.HookCaller, **values: Event) -> None:
        """Tell observers of an event. Its time becomes now: in all of them, times never go back."""
        with self._lock:
            self._observe(hook, **{name: attrs.evolve(event) for name, event in values.items()})

    def _observe(self, hook: pluggy.HookCaller, **values: object) -> None:
        # One by one, since pluggy's broadcast stops at the first exception.
        with self._lock:
            for implementation in hook.get_hookimpls():
                wanted = {name: values[name] for name in implementation.argnames}
                try:
                    self._tell(implementation, functools.partial(implementation.function, **wanted))
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # an observer can't break a run, nor can sys.exit
                    why = error.message if isinstance(error, VmclonerError) else said(error)
                    level = logging.WARNING
                    if implementation.plugin_name in self._faulty:  # it is told once, not per step
                        level = logging.DEBUG
                    self._faulty.add(implementation.plugin_name)
                    log.log(level, "observer %s failed: %s", _title(implementation), why)
                    log.debug("observer %s", implementation.plugin_name, exc_info=True)

    def _tell(self, observer: pluggy.HookImpl, call: Callable[[], object]) -> None:
        """Call an observer. One of an entry point has :data:`OBSERVING` seconds, or is dropped."""
        name = observer.plugin_name
        if not name.startswith(_OBSERVER):
            call()
            return
        found = answers({name: call}, OBSERVING)[name]
        if isinstance(found, Late):
            self._manager.unregister(name=name)
            log.warning("observer %s hangs, and is not used any more", _title(observer))
        elif isinstance(found, VmclonerError):
            raise found

    def watch(self, observer: object) -> Callable[[], None]:
        """Register an observer; returns the function that unregisters it."""
        self._manager.register(observer)

        def stop() -> None:
            self._manager.unregister(observer)

        return stop


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    return manager


def _register_observer(manager: pluggy.PluginManager, name: str, plugin: object) -> None:
    """Register an observer, or nothing.

    :raises Exception: it is for another driver API, or its hooks aren't those of vmcloner.
    """
    _check_api("it", getattr(plugin, OBSERVER_API, API_VERSION))
    manager.register(plugin, name=name)
    try:
        manager.check_pending()
        if not manager.get_hookcallers(plugin):
            raise TypeError("it has no hook of vmcloner")
    except BaseException:
        manager.unregister(plugin)
        raise


def _try_factory(kind: str, backend: Backend) -> None:
    """Make a driver, unless its class has been checked or its settings have no defaults.

    :raises TypeError: the factory makes something else. :raises Exception: it fails.
    """
    if isinstance(backend.factory, type):
        return
    context = DriverContext(
        host=Host(name="none", state=Path("/nonexistent")), name=backend.name, runner=LocalRunner()
    )
    values: list[object] = [context]
    settings = getattr(backend, "settings", getattr(backend, "options", None))
    if settings is not None:
        try:
            values.append(settings())
        except TypeError:
            return
    factory: Callable[..., object] = backend.factory
    wrong = check_driver(factory(*values), CONTRACTS[kind])
    if wrong is not None:
        raise TypeError(wrong)


def _title(implementation: pluggy.HookImpl) -> str:
    """Return a plugin's name, with its distribution if it came by an entry point."""
    kind, _, name = implementation.plugin_name.partition(":")
    owner = _owners(kind, name) if kind in KINDS else ""
    return f"{name!r} of {owner}" if owner else implementation.plugin_name


def _culprit(hook: pluggy.HookCaller, error: BaseException | None) -> str:
    """Return whose implementation of a hook raised an error, for a message's end.

    :param error: None for one that hangs: then it may be any of them.
    """
    trace = traceback.extract_tb(error.__traceback__ if error is not None else None)
    files = {frame.filename for frame in trace}
    suspects = [
        _title(each)
        for each in hook.get_hookimpls()
        if each.plugin_name.startswith(_OBSERVER)
        and (error is None or inspect.getsourcefile(each.function) in files)
    ]
    return f"; it is {' or '.join(suspects)}" if suspects else ""


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
