"""The hypervisor ``xen``: PV, PVH and HVM guests by libxl, through libvirt."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vmcloner_core.drivers import DriverContext, Lane, NativeInterface
from vmcloner_core.errors import BackendError, DeadlineExceeded, HostCommandError, InvalidRequest
from vmcloner_core.model import BootConfig, Check, DomainSpec, HostResources, Template
from vmcloner_core.units import format_size
from vmcloner_libvirt import operations, xen_doctor
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.console import Consoles, log_files
from vmcloner_libvirt.driver import LibvirtDriver
from vmcloner_libvirt.errors import is_disconnect
from vmcloner_libvirt.libxl import Logs
from vmcloner_libvirt.metadata import disks, parse
from vmcloner_libvirt.operations import tolerate
from vmcloner_libvirt.settings import XenSettings
from vmcloner_libvirt.xenhost import XenHost
from vmcloner_libvirt.xenstore import Xenstore

if TYPE_CHECKING:
    from vmcloner_libvirt.rendering import Rendered, Renderer

OVERHEAD = 4 * 1024**2
"""Bytes that Xen takes for a guest beside its memory (page tables, grants, its own structures)."""
HEARD = 3.0
"""Seconds for a running guest to acknowledge a shutdown request."""
SLOW = "too many parallel starts for this host: set starts = 1 in [hosts.HOST.hypervisor.xen]"
_BACKENDS = {"raw": "file", "qcow2": "qemu"}


class _TooSlow(HostCommandError):
    """A script of libxl's timed out."""


class XenDriver(LibvirtDriver):
    """Runs clones under Xen. Thread-safe. Never changes Domain-0, whatever its name."""

    kind = "xen"
    mac_prefix = "00:16:3e"
    not_warm = "guests that Xen restores share no memory"

    def __init__(
        self,
        context: DriverContext,
        settings: XenSettings,
        *,
        host: XenHost | None = None,
        logs: Logs | None = None,
        store: Xenstore | None = None,
    ) -> None:
        super().__init__(context, settings.uri, settings.connections)
        self.consoles = XenConsoles(self.connections, settings.console_logs)
        self.native = XlCfg(self)
        self._settings = settings
        self._host = host or XenHost(runner=context.runner)
        self._logs = logs or Logs()
        self._store = store or Xenstore()
        self._deciding = threading.Lock()
        self._starting_again = threading.Lock()
        self.start_lane = Lane(concurrency=settings.starts)
        self.stop_lane = Lane(batch=settings.stops)

    # --- the host -----------------------------------------------------------------------------

    @functools.cached_property
    def _renderer(self) -> Renderer:
        from vmcloner_libvirt.rendering import Renderer

        return Renderer("xen.xml.j2")

    @functools.cached_property
    def _kind_and_version(self) -> tuple[str, str]:
        """The hypervisor at the URI and its version: ``Xen``, ``4.17``."""

        def ask(connection: Any) -> tuple[str, str]:
            number = connection.getVersion()
            return connection.getType(), f"{number // 1_000_000}.{number // 1000 % 1000}"

        return self.connections.ask(ask)

    @functools.cached_property
    def _balloons(self) -> bool:
        return self._host.balloons()

    def resources(self) -> HostResources:
        """See :meth:`HypervisorDriver.resources`: the hypervisor's memory, not Domain-0's."""
        total, free, cpus, dom0 = self.connections.ask(_memory)
        kept = f"Domain-0 has {format_size(dom0)}"
        if self._balloons:
            spare = max(0, dom0 - self._settings.dom0_memory)
            free += spare
            kept += f" and can give up {format_size(spare)} of it"
        else:
            kept += " and keeps it"
        return HostResources(
            memory_total=total,
            memory_free=min(free, total),
            cpus=cpus,
            memory_overhead=OVERHEAD,
            memory_hint=f"{kept}; Xen has no other free memory",
        )

    def probe(self) -> Iterator[Check]:
        """See :meth:`HypervisorDriver.probe`."""
        return xen_doctor.examine(
            self.name,
            self.connections,
            self._host,
            self._settings.console_logs,
            self._settings.dom0_memory,
        )

    def records(self, connection: Any) -> operations.Records:
        """See :meth:`LibvirtDriver.records`; libxl's driver has no statistics of all domains.

        libvirt reports a domain as off while libxl still stops it and its disks are in use.
        """
        module = libvirt()
        for domain in connection.listAllDomains():
            with tolerate("VIR_ERR_NO_DOMAIN"):
                state, reason = domain.state()
                ending = domain.ID() != -1 and state == module.VIR_DOMAIN_SHUTOFF
                if ending and reason != module.VIR_DOMAIN_SHUTOFF_CRASHED:
                    state, reason = module.VIR_DOMAIN_SHUTDOWN, 0
                yield domain, state, reason

    # --- domain definitions ---------------------------------------------------------------------

    def check(self, template: Template) -> None:
        """See :meth:`HypervisorDriver.check`."""
        where = f"template {template.name}"
        for number, nic in enumerate(template.nics):
            if nic.kind == "user":
                raise InvalidRequest(
                    f"{where}: nics[{number}].kind: Xen has no user-mode network",
                    hint='kind = "bridge", source = "xenbr0"; or nics = [] for none',
                )
        if template.domain.type in ("pv", "pvh") and template.boot == "disk":
            raise InvalidRequest(
                f"{where}: a {template.domain.type} guest has no firmware to boot its disk",
                hint='boot = "pygrub" or "kernel", or [domain] type = "hvm"',
            )

    def unused(self, template: Template) -> tuple[str, ...]:
        """See :meth:`HypervisorDriver.unused`; a PV guest has no firmware."""
        options = template.domain
        unused = {
            "machine": options.machine is not None,
            "agent": options.agent,
            "graphics": options.graphics is not None,
            "firmware": options.firmware != "bios" and options.type in ("pv", "pvh"),
        }
        return tuple(f"domain.{key}" for key, is_so in unused.items() if is_so)

    def prepare(self, spec: DomainSpec) -> Rendered:
        """See :meth:`LibvirtDriver.prepare`."""
        for volume in spec.volumes:
            if volume.network is not None:
                raise InvalidRequest(
                    f"{spec.name}: backend xen has no {volume.network.protocol} disks "
                    f"(pool {volume.pool})",
                    hint="--storage files or lvm-thin; or KVM",
                )
        with self._deciding:  # once, not once for each thread of the first batch
            kind, version = self._kind_and_version
            renderer = self._renderer
        spec = _without_virtio(spec)
        boot = self._boot(spec, version)
        spec = attrs.evolve(spec, boot=boot)
        emulator = self._host.emulator(version) if guest_type(spec) == "hvm" else None
        domain_type = "test" if kind == "TEST" else "xen"
        return renderer.render(spec, template_values(spec, domain_type, emulator))

    def undefine_flags(self, domain: Any) -> int:  # noqa: ARG002 - the same for all domains
        """See :meth:`LibvirtDriver.undefine_flags`."""
        return int(libvirt().VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    def _boot(self, spec: DomainSpec, version: str) -> BootConfig:
        """Return what a clone boots, with the boot loader's full path."""
        loader = spec.boot.bootloader
        if guest_type(spec) == "hvm":
            if loader is None:
                return spec.boot
            raise InvalidRequest(
                f"{spec.name}: an HVM guest boots by its firmware, not by {loader.name}",
                hint='boot = "disk", or [domain] type = "pv" or "pvh"',
            )
        if loader is None and spec.boot.kernel is None:
            raise InvalidRequest(
                f"{spec.name}: a {guest_type(spec)} guest has no firmware to boot its disk",
                hint='boot = "pygrub" or "kernel", or [domain] type = "hvm"',
            )
        if loader is None:
            return spec.boot
        overlay = spec.volumes[:1] and spec.volumes[0].format != "raw"
        if overlay and self._bootloader_user() is not None:
            raise InvalidRequest(
                f"{spec.name}: its disk is an overlay ({spec.volumes[0].format}), which "
                f"a restricted {loader.name} can't read",
                hint="--full, or a pool of thin volumes",
            )
        if loader.is_absolute():
            return spec.boot
        found = self._host.program(loader.name, version)
        if found is None:
            raise BackendError(
                f"{spec.name}: this host's Xen {version} has no {loader.name}",
                hint=f"apt-get install xen-utils-{version}",
            )
        return attrs.evolve(spec.boot, bootloader=found)

    # --- start and stop -----------------------------------------------------------------------

    def begin(self, connection: Any, name: str, boot: BootConfig | None = None) -> bool:
        """See :meth:`LibvirtDriver.begin`; adds the cause to libvirt's error."""
        if operations.active(connection, name) is None:
            self.consoles.remove(name)  # xenconsoled appends
        self._admit(connection, name)
        try:
            changed = self._start(connection, name, boot)
        except _TooSlow:
            # libxl's time limit can't be set, and parallel starts are what made this one slow:
            # retry such starts one by one.
            with self._starting_again:
                changed = self._start(connection, name, boot)
        self._forget(connection, name)
        return changed

    def _start(self, connection: Any, name: str, boot: BootConfig | None) -> bool:
        mark = self._logs.mark()
        try:
            with self._store.watch(name) as seen:
                return operations.start(connection, name, boot)
        except libvirt().libvirtError as error:
            failure = None if is_disconnect(error) else self._logs.failure(name, mark, seen.domid)
            if failure is None:
                raise
            message = f"{name}: can't start: {failure.reason}"
            if failure.slow:
                raise _TooSlow(f"{message} {failure.slow}", hint=SLOW) from error
            hint = "vmcloner host check xen" if failure.log is None else f"see {failure.log}"
            raise HostCommandError(message, hint=hint) from error

    def ask(self, connection: Any, name: str) -> bool:
        """See :meth:`LibvirtDriver.ask`; by xl(1).

        libvirt would wait up to a minute for the guest to acknowledge, and answer no other call
        meanwhile. The request stays in effect after xl has ended.
        """
        domain = operations.active(connection, name)
        if domain is None:
            return False
        with tolerate("VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_DOMAIN"):
            if domain.state()[0] == libvirt().VIR_DOMAIN_PAUSED:
                domain.resume()  # a paused guest doesn't see the request
        if self.context.runner.which("xl") is None:
            return operations.ask(connection, name)
        domid = domain.ID()
        if domid > 0:  # 0 is the host itself
            # A guest that can't be asked is destroyed at the timeout.
            with contextlib.suppress(HostCommandError, DeadlineExceeded):
                self.context.runner.run(["xl", "shutdown", "-F", str(domid)], timeout=HEARD)
        return True

    def end(self, connection: Any, name: str) -> bool:
        """See :meth:`LibvirtDriver.end`."""
        self._forget(connection, name)
        return super().end(connection, name)

    def clean(self, name: str) -> None:
        """See :meth:`LibvirtDriver.clean`."""
        super().clean(name)
        self._logs.remove(name)

    def logs(self, name: str) -> tuple[Path, ...]:
        """See :meth:`HypervisorDriver.logs`."""
        return (*log_files(self.consoles.log(name)), *self._logs.left(name))

    def _forget(self, connection: Any, name: str) -> None:
        domain = operations.active(connection, name)
        if domain is not None:
            self._logs.forget(name, domain.ID())

    def _admit(self, connection: Any, name: str) -> None:
        """Let the user that libxl runs the clone's boot loader as read its boot disk.

        pygrub restricts itself to this one disk. The disk stays that user's, since libxl runs the
        boot loader at each reboot too.
        """
        domain = operations.find(connection, name)
        if domain is None:
            return
        root = parse(domain.XMLDesc(libvirt().VIR_DOMAIN_XML_INACTIVE))
        if root.find("bootloader") is None:
            return
        user = self._bootloader_user()
        if user is None:
            return
        for disk in disks(root)[:1]:
            with contextlib.suppress(OSError):  # libxl reports a missing disk
                if disk.stat().st_uid != user:
                    os.chown(disk, user, -1)

    def _bootloader_user(self) -> int | None:
        """Return the user id that libxl runs boot loaders as, None for root."""
        try:
            user = self._host.bootloader_user()
        except BackendError:  # host check and libxl report it
            return None
        return None if user is None else user.pw_uid


class XenConsoles(Consoles):
    """Consoles that xenconsoled(8) logs, if it is configured to."""

    def prepare(self) -> None:
        """See :meth:`Consoles.prepare`; the folder is xenconsoled's."""

    def log(self, name: str) -> Path:
        """See :meth:`Consoles.log`; xenconsoled chooses the file's name."""
        log = super().log(name)
        return log.with_name(f"guest-{log.name}")

    def flags(self) -> int:
        """See :meth:`Consoles.flags`; libxl's driver takes none, and never shares a console."""
        return 0


class XlCfg(NativeInterface):
    """Domains as xl.cfg(5), by libvirt's own converter."""

    def __init__(self, driver: XenDriver) -> None:
        self._driver = driver

    def render(self, spec: DomainSpec) -> str:
        """See :meth:`NativeInterface.render`."""
        xml = self._driver.render(spec)
        return self._driver.connections.call(
            lambda connection: str(connection.domainXMLToNative("xen-xl", xml, 0)), about=spec.name
        )


def guest_type(spec: DomainSpec) -> str:
    """Return a clone's guest type: its template's, or the one that its boot needs."""
    if spec.options.type is not None:
        return spec.options.type
    return "hvm" if spec.boot.kernel is None and spec.boot.bootloader is None else "pv"


def template_values(spec: DomainSpec, domain_type: str, emulator: Path | None) -> dict[str, object]:
    """Return the values for the template ``xen.xml.j2`` beside the common ones."""
    return {
        "domain_type": domain_type,
        "type": guest_type(spec),
        "cpu": spec.options.cpu,
        "emulator": None if emulator is None else str(emulator),
        "drivers": [
            "phy" if volume.kind == "block" else _BACKENDS[volume.format] for volume in spec.volumes
        ],
    }


def _without_virtio(spec: DomainSpec) -> DomainSpec:
    """Return the clone with Xen's own devices in place of the default, virtio."""
    options = spec.options
    if options.disk_bus == "virtio":
        options = attrs.evolve(options, disk_bus="xen")
    nics = tuple(
        attrs.evolve(nic, spec=attrs.evolve(nic.spec, model="netfront"))
        if nic.spec.model == "virtio"
        else nic
        for nic in spec.nics
    )
    return attrs.evolve(spec, options=options, nics=nics)


def _memory(connection: Any) -> tuple[int, int, int, int]:
    """Return Xen's total and free memory, its processors, and Domain-0's memory; bytes."""
    _, megabytes, cpus, *_ = connection.getInfo()
    free = total = megabytes * 1024**2
    with tolerate("VIR_ERR_NO_SUPPORT"):
        free = connection.getFreeMemory()
    dom0 = 0
    for domain in connection.listAllDomains(libvirt().VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        if domain.ID() == 0:
            dom0 = domain.info()[2] * 1024
    return total, free, cpus, dom0
