"""Hook specifications (pluggy): how plugins register backends, watch runs and veto plans.

A plugin is what an entry point names: a module or an object with functions marked
:data:`hookimpl`. Registration hooks return a frozen descriptor; the plugin host imports only
plugins whose names are used. Backends are then called as objects, never by hooks.

A storage plugin, complete::

    # setup.cfg:  vmcloner.storage =  zfs = vmcloner_zfs
    from vmcloner_core.hooks import StorageBackend, hookimpl

    @hookimpl
    def vmcloner_storage_backend():
        return StorageBackend(
            api=1, name="zfs", description="ZFS clones", factory=ZfsDriver, settings=ZfsSettings
        )

An observer, loaded with every run::

    # setup.cfg:  vmcloner.observer =  slack = vmcloner_slack
    @hookimpl
    def vmcloner_run_finished(result):
        post(f"{result.plan.run}: {len(result.failures)} failed")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pluggy

from vmcloner_core.drivers import (
    BootProvider,
    DriverContext,
    HypervisorDriver,
    IdentityProvider,
    ImageBuilder,
    StorageDriver,
)
from vmcloner_core.model import Clone, Labels, Lease
from vmcloner_core.plan import Plan, ProgressEvent, RunResult, Sample, Seen, StepEvent, Waiting

PROJECT = "vmcloner"
API_VERSION = 1
"""Version of the driver API; see docs/api-changes.md. Each change that breaks existing backends
raises it. A backend built for another version is refused."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@attrs.frozen(kw_only=True)
class NoSettings:
    """For a backend without settings."""


@attrs.frozen(kw_only=True)
class StorageBackend:
    """Describes a storage backend.

    :param api: the version of the driver API that it is built for: a literal number, since
        :data:`API_VERSION` would match every version.
    :param name: the entry point's name. :param settings: an attrs class; the table
        ``[hosts.HOST.storage.NAME]`` of the settings file is read into it, strictly.
    :param factory: called once per pool with (:class:`DriverContext`, settings). It opens nothing;
        the driver does at its first call.
    """

    api: int
    name: str
    description: str
    factory: Callable[[DriverContext, Any], StorageDriver]
    settings: type = NoSettings


@attrs.frozen(kw_only=True)
class HypervisorBackend:
    """Describes a hypervisor backend; fields as in :class:`StorageBackend`."""

    api: int
    name: str
    description: str
    factory: Callable[[DriverContext, Any], HypervisorDriver]
    settings: type = NoSettings


@attrs.frozen(kw_only=True)
class BootBackend:
    """Describes a boot provider; ``api`` as in :class:`StorageBackend`.

    :param hypervisors: the kinds of hypervisor that it supports.
    :param at_start: those of them on which it is asked at each start
        (:meth:`BootProvider.resolve_start`), not only when a clone is defined. Such a hypervisor
        must be :attr:`one_shot <HypervisorDriver.one_shot>`.
    :param cmdline: whether it gives a kernel, and so a command line, to every clone.
    :param networks: whether its requests at a start include the host's networks.
    """

    api: int
    name: str
    description: str
    factory: Callable[[DriverContext], BootProvider]
    hypervisors: frozenset[str] = frozenset({"kvm", "xen"})
    at_start: frozenset[str] = frozenset()
    cmdline: bool = False
    networks: bool = False


@attrs.frozen(kw_only=True)
class ImageBackend:
    """Describes an image builder; ``api`` as in :class:`StorageBackend`.

    :param factory: called with :class:`DriverContext`, and with the options if it takes any.
    :param options: an attrs class; a template's table ``image.options`` is read into it, strictly.
    """

    api: int
    name: str
    description: str
    factory: Callable[..., ImageBuilder]
    options: type | None = None


@attrs.frozen(kw_only=True)
class IdentityBackend:
    """Describes an identity provider; ``api`` as in :class:`StorageBackend`.

    :param cmdline: whether it needs a kernel command line.
    """

    api: int
    name: str
    description: str
    factory: Callable[[DriverContext], IdentityProvider]
    cmdline: bool = False


Backend = StorageBackend | HypervisorBackend | BootBackend | ImageBackend | IdentityBackend


class Hooks:
    """All hooks. Those that return a descriptor are called once per plugin, when it is loaded."""

    @hookspec(historic=True)
    def vmcloner_storage_backend(self) -> StorageBackend:  # type: ignore[empty-body]
        """Return the description of a storage backend."""

    @hookspec(historic=True)
    def vmcloner_hypervisor_backend(self) -> HypervisorBackend:  # type: ignore[empty-body]
        """Return the description of a hypervisor backend."""

    @hookspec(historic=True)
    def vmcloner_boot_provider(self) -> BootBackend:  # type: ignore[empty-body]
        """Return the description of a boot provider."""

    @hookspec(historic=True)
    def vmcloner_image_builder(self) -> ImageBackend:  # type: ignore[empty-body]
        """Return the description of an image builder."""

    @hookspec(historic=True)
    def vmcloner_identity_provider(self) -> IdentityBackend:  # type: ignore[empty-body]
        """Return the description of an identity provider."""

    @hookspec
    def vmcloner_preflight(self, plan: Plan) -> None:
        """Check a complete plan before anything is changed; raise VmclonerError to veto it."""

    @hookspec(firstresult=True)
    def vmcloner_clone_mac(self, labels: Labels, nic: int, attempt: int) -> str | None:
        """Return the MAC address for a clone's card, or None to leave it to the next policy.

        Called again with the next ``attempt`` if the address is already in use.
        """

    @hookspec
    def vmcloner_plan_ready(self, plan: Plan) -> None:
        """Observe a plan that is about to be carried out."""

    @hookspec
    def vmcloner_step_changed(self, event: StepEvent) -> None:
        """Observe a clone's step; one call at a time, from any thread. Must not block."""

    @hookspec
    def vmcloner_progress(self, event: ProgressEvent) -> None:
        """Observe the bytes of a long step; one call at a time, from any thread. Must not block."""

    @hookspec
    def vmcloner_waiting(self, run: str, waiting: Waiting) -> None:
        """Observe what clones that aren't ready are doing, about once a second. Must not block."""

    @hookspec
    def vmcloner_clone_seen(self, seen: Seen) -> None:
        """Observe what was first seen of a clone that is waited for. Must not block."""

    @hookspec
    def vmcloner_host_sampled(self, sample: Sample) -> None:
        """Observe how busy the host is, about once a second at first. Must not block."""

    @hookspec
    def vmcloner_run_stopping(self, run: str, calls: Mapping[str, int]) -> None:
        """Observe that a run was asked to stop. ``calls``: clones in calls in progress, by step."""

    @hookspec
    def vmcloner_lease_expiring(self, clone: Clone, lease: Lease, left: float) -> None:
        """Observe that a clone's lease ends in ``left`` seconds: it will then be removed.

        Called for each such clone at each ``vmcloner gc`` that isn't a dry run, from
        ``defaults.lease_warning`` before the end (an hour) until the end.
        """

    @hookspec
    def vmcloner_clone_ready(self, run: str, clone: str) -> None:
        """Observe that a clone has completed all of its steps."""

    @hookspec
    def vmcloner_run_finished(self, result: RunResult) -> None:
        """Observe the end of a run."""
