"""The hypervisor ``kvm``: QEMU through libvirt, with KVM where it works, else with emulation."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vmcloner_core.drivers import NO_BOOTS, DriverContext
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import (
    BootConfig,
    Check,
    DomainSpec,
    DomainUse,
    HostResources,
    Outcome,
    Template,
)
from vmcloner_libvirt import firmware, host_memory, tpm
from vmcloner_libvirt.acceleration import KvmProbe
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.console import log_files, remove_log
from vmcloner_libvirt.driver import LibvirtDriver
from vmcloner_libvirt.metadata import nvram, parse
from vmcloner_libvirt.settings import KvmSettings
from vmcloner_libvirt.statistics import QemuStatistics
from vmcloner_libvirt.warm import Warm

if TYPE_CHECKING:
    from vmcloner_libvirt.rendering import Rendered, Renderer

MACHINE = "q35"
EMULATOR_MEMORY = 32 * 1024**2
"""Bytes that QEMU takes beside guest memory and translated code (measured, 7.2)."""
# CPU modes that need KVM.
_HOST_CPUS = {"host-passthrough", "host-model"}


class KvmDriver(LibvirtDriver):
    """Runs clones on QEMU. Thread-safe."""

    kind = "kvm"
    mac_prefix = "52:54:00"
    one_shot = True

    def __init__(self, context: DriverContext, settings: KvmSettings) -> None:
        super().__init__(context, settings.uri, settings.connections)
        self._accel = settings.accel
        self._probe = KvmProbe(context)
        self._tb_cache = settings.tb_cache
        self._deciding = threading.Lock()
        self.statistics = QemuStatistics(self.connections, self.states, self._pid_files)
        if settings.uri.startswith("qemu"):
            self.warm = Warm(self, self._change)

    @functools.cached_property
    def _renderer(self) -> Renderer:
        from vmcloner_libvirt.rendering import Renderer

        return Renderer("domain.xml.j2")

    @functools.cached_property
    def _domain_type(self) -> str:
        """libvirt's domain type: ``kvm``, ``qemu``, or ``test`` for its test driver."""
        types = {e.get("type") for e in self.capabilities.iterfind("guest/arch/domain")}
        if "test" in types:
            return "test"
        if self._accel != "auto":
            return "kvm" if self._accel == "kvm" else "qemu"
        works = "kvm" in types and self._probe.cached().works
        return "kvm" if works else "qemu"

    def unused(self, template: Template) -> tuple[str, ...]:
        """See :meth:`HypervisorDriver.unused`."""
        return ("domain.type",) if template.domain.type not in (None, "hvm") else ()

    def resources(self) -> HostResources:
        """See :meth:`HypervisorDriver.resources`."""
        found = super().resources()
        with self._deciding:
            kind = self._domain_type
        if kind == "test":
            return found
        overhead = self._tb_cache + EMULATOR_MEMORY if kind == "qemu" else 0
        free = host_memory.available(overhead)
        return attrs.evolve(
            found,
            memory_free=found.memory_free if free is None else min(free, found.memory_total),
            memory_overhead=overhead,
            emulated=kind == "qemu",
            pages=host_memory.pages(),
        )

    def started(self, name: str) -> float | None:
        """See :meth:`HypervisorDriver.started`. libvirt writes QEMU's process id at each start."""
        for file in self._pid_files(name):
            with contextlib.suppress(OSError):
                return file.stat().st_mtime
        return None

    def _pid_files(self, name: str) -> tuple[Path, ...]:
        """Return the places where libvirt may have written the process id of a domain's QEMU."""
        user = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"))
        folders = {"qemu:///system": Path("/run"), "qemu:///session": user}
        folder = folders.get(self.connections.uri)
        if folder is None:
            return ()
        places = (folder / "libvirt/qemu", folder / "libvirt/qemu/run")
        return tuple(place / f"{name}.pid" for place in places)

    def no_kvm(self) -> tuple[str, str] | None:
        """See :meth:`LibvirtDriver.no_kvm`."""
        found = self._probe.cached()
        return None if found.works else (found.reason, found.fix)

    def prepare(self, spec: DomainSpec) -> Rendered:
        """See :meth:`LibvirtDriver.prepare`."""
        if spec.boot.bootloader is not None:
            raise InvalidRequest(
                f"{spec.name}: QEMU can't run a boot loader on the host ({spec.boot.bootloader})"
            )
        with self._deciding:  # once, not once for each thread of the first batch
            domain_type, renderer = self._domain_type, self._renderer
        log = self.consoles.log(spec.name)
        return renderer.render(spec, template_values(spec, domain_type, log, self._tb_cache))

    def start(
        self, names: Sequence[str], boots: Mapping[str, BootConfig] = NO_BOOTS
    ) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.start`."""
        for outcome in super().start(names, boots):
            yield tpm.explained(outcome, self.uri)

    def undefine_flags(self, domain: Any) -> int:
        """See :meth:`LibvirtDriver.undefine_flags`.

        libvirt unlinks whatever file the definition names as the firmware's variables.
        """
        module = libvirt()
        flags = (
            module.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | module.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        )
        if domain.connect().getType() == "QEMU":  # the test driver refuses these flags
            flags |= module.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            flags |= getattr(module, "VIR_DOMAIN_UNDEFINE_TPM", 0)  # libvirt 8.9
            file = nvram(parse(domain.XMLDesc(module.VIR_DOMAIN_XML_INACTIVE)))
            if file is None or self.is_own_nvram(domain.name(), file):
                flags |= module.VIR_DOMAIN_UNDEFINE_NVRAM
            else:
                flags |= module.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        return int(flags)

    def clean(self, name: str) -> None:
        """See :meth:`LibvirtDriver.clean`."""
        super().clean(name)
        for log in firmware.logs(name, self.uri):
            remove_log(log)

    def logs(self, name: str) -> tuple[Path, ...]:
        """See :meth:`HypervisorDriver.logs`."""
        return tuple(file for log in firmware.logs(name, self.uri) for file in log_files(log))

    def is_own_process(self, domain: DomainUse, arguments: Sequence[str]) -> bool:
        """See :meth:`HypervisorDriver.is_own_process`; QEMU is told its domain's UUID."""
        return str(domain.uuid) in arguments

    def probe(self) -> Iterator[Check]:
        """See :meth:`HypervisorDriver.probe`."""
        from vmcloner_libvirt import doctor

        return doctor.examine(self.context, self.connections, self._probe, self._accel)


def template_values(
    spec: DomainSpec, domain_type: str, console_log: Path, tb_cache: int
) -> dict[str, object]:
    """Return the values for the template ``domain.xml.j2`` beside the common ones."""
    cpu = spec.options.cpu or ("host-passthrough" if domain_type == "kvm" else None)
    if domain_type != "kvm" and cpu in _HOST_CPUS:
        cpu = "maximum"
    return {
        "domain_type": domain_type,
        "tb_cache": max(1, tb_cache // 1024**2),
        "machine": spec.options.machine or MACHINE,
        "cpu": cpu,
        "console_log": str(console_log),
    }
