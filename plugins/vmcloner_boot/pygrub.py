"""Boot provider ``pygrub``: the kernel that is on the clone's own disk, booted by the host.

On Xen the toolstack runs pygrub at each start and each reboot of the guest. On KVM the same is done
here: the disk is read, not mounted, and what it would boot is booted once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vmcloner_boot.choice import Choice
from vmcloner_boot.cmdline import check_cmdline, example, fill_cmdline
from vmcloner_boot.disk_image import Budget, Unreadable, open_image
from vmcloner_boot.extraction import check, extract
from vmcloner_boot.loaders import choose
from vmcloner_boot.systems import Skipped, systems
from vmcloner_boot.trees import Tree
from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.hooks import BootBackend, hookimpl
from vmcloner_core.model import BootConfig, Outcome, Template, Volume

PROGRAM = Path("pygrub")
"""A bare name: the hypervisor looks for it among the programs of the Xen that is installed."""


class PygrubBoot(BootProvider):
    """Boots the kernel on the clone's own disk. Thread-safe.

    ``kernel.cmdline`` of the template is added to the command line that the disk says.
    """

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check(self, template: Template) -> None:
        """See :meth:`BootProvider.check`."""
        kernel = template.kernel
        if kernel is not None and (kernel.path is not None or kernel.initrd is not None):
            raise InvalidRequest(
                f"template {template.name}: boot = 'pygrub' boots the kernel on the clone's disk, "
                "not kernel.path",
                hint="boot = 'kernel' boots one of the host; pygrub takes kernel.cmdline alone",
            )
        fill_cmdline(template, *example(template))

    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """See :meth:`BootProvider.resolve`: Xen's boot loader, on KVM the firmware's way."""
        for request in requests:
            name = request.labels.clone
            try:
                yield Outcome(key=name, value=self._defined(request))
            except VmclonerError as error:
                yield Outcome(key=name, error=error)

    def _defined(self, request: BootRequest) -> BootConfig:
        if request.volumes:
            _boot_disk(request.volumes)
        if request.hypervisor != "xen":
            return BootConfig(devices=("hd",), source="its disk, read at each start")
        words = fill_cmdline(request.template, request.labels, request.nics, request.values)
        return BootConfig(
            bootloader=PROGRAM,
            cmdline=words or None,
            devices=(),
            source="its disk, read by Xen's pygrub at each start",
        )

    def resolve_start(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """See :meth:`BootProvider.resolve_start`: read each clone's disk."""
        for request in requests:
            name = request.labels.clone
            try:
                yield Outcome(key=name, value=_read(request))
            except VmclonerError as error:
                failure = type(error)(f"{name}: {error.message}", hint=error.hint)
                yield Outcome(key=name, error=failure)


def _read(request: BootRequest) -> BootConfig:
    """Read one clone's disk; what it boots is then in the request's folder."""
    words = fill_cmdline(request.template, request.labels, request.nics, request.values)
    volume = _boot_disk(request.volumes)
    budget = Budget()
    image = open_image(volume.path, volume.format, budget, volume.backing)
    try:
        trees, skipped = systems(image)
        choice = _choice(trees, skipped, budget)
        cmdline = check_cmdline(f"{choice.cmdline} {words}".strip(), choice.source, request.labels)
        if request.folder is None:
            check(choice)
            kernel = initrd = None
        else:
            kernel, initrd = extract(choice, request.folder, request.template.name)
    finally:
        image.close()
    return BootConfig(
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline or None,
        devices=(),
        source=choice.source,
        origins=tuple(map(str, (choice.kernel, *choice.initrds))),
    )


def _boot_disk(volumes: Sequence[Volume]) -> Volume:
    if not volumes:
        raise Unreadable("it has no disk")
    first = min(volumes, key=lambda volume: volume.disk)
    if first.kind == "network":
        raise InvalidRequest(
            f"boot = 'pygrub' can't read a disk in pool {first.pool}, which is on the network",
            hint="boot = 'disk' or 'kernel', or a pool of this host",
        )
    return first


def _choice(trees: Sequence[Tree], skipped: Sequence[Skipped], budget: Budget) -> Choice:
    try:
        return choose(trees, budget)
    except Unreadable as error:
        if not skipped:
            raise
        others = ", ".join(f"{part.place}: {part.reason}" for part in skipped)
        raise Unreadable(f"{error.message}; not read: {others}", hint=error.hint) from error


@hookimpl
def vmcloner_boot_provider() -> BootBackend:
    """Describe the backend."""
    return BootBackend(
        api=1,
        name="pygrub",
        description="The boot menu on the clone's own disk, read on the host",
        factory=PygrubBoot,
        at_start=frozenset({"kvm"}),
        cmdline=True,
    )
