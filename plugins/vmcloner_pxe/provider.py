"""Boot provider ``pypxeboot``: what the network says that a clone boots, found out on the host.

On Xen the command ``pypxeboot`` is the domain's boot loader, which libxl runs at each start and
reboot. On KVM the same is done before each start, and the clone boots the kernel directly, once: a
reboot by the guest ends its domain, and the next start asks again. So an installer that was booted
is not booted for ever.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cattrs

from vmcloner_core.cancelling import interruptible
from vmcloner_core.coalesce import Coalescer
from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.errors import BackendError, HostCommandError, InvalidRequest, VmclonerError
from vmcloner_core.hooks import BootBackend, hookimpl
from vmcloner_core.model import MAX_CMDLINE, BootConfig, Outcome, Template
from vmcloner_pxe.errors import CONTROL
from vmcloner_pxe.messages import Batch, Member, Result
from vmcloner_pxe.networks import bridge_of, check_cards

TIMEOUT = 110.0
"""Seconds for what the network says and gives, of one batch."""
MAX_BATCH = 200


class Pypxeboot(BootProvider):
    """Boots clones from the network. Thread-safe.

    ``kernel.cmdline`` of the template is added to the command line that the network says;
    ``kernel.path`` and ``kernel.initrd`` are not used.
    """

    def __init__(self, context: DriverContext) -> None:
        self._context = context
        self._queue = Coalescer(self._ask, key=lambda request: request.labels.clone, most=MAX_BATCH)
        self._bridges: dict[tuple[str, str], str] = {}

    def check(self, template: Template) -> None:
        """See :meth:`BootProvider.check`: it needs a network card on a bridge or in a network."""
        check_cards(template, "pypxeboot")

    def unused(self, template: Template) -> tuple[str, ...]:
        """See :meth:`BootProvider.unused`: the kernel is the server's."""
        given = template.kernel.given if template.kernel is not None else ()
        return tuple(key for key in given if key != "kernel.cmdline")

    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """See :meth:`BootProvider.resolve`."""
        for request in requests:
            try:
                value = self._definition(request)
            except VmclonerError as error:
                yield Outcome(key=request.labels.clone, error=error)
            else:
                yield Outcome(key=request.labels.clone, value=value)

    def _definition(self, request: BootRequest) -> BootConfig:
        if request.hypervisor != "xen":
            return BootConfig(devices=("hd",))
        return BootConfig(
            bootloader=_program(),
            bootloader_args=(
                f"--mac={request.nics[0].mac}",
                f"--interface={self._bridge(request)}",
                f"--uuid={request.uuid}",
            ),
            cmdline=_words(request) or None,
            devices=(),
            source="the network, asked by libxl at each start",
        )

    def resolve_start(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """See :meth:`BootProvider.resolve_start`."""
        results = self._queue(requests)
        for request in requests:
            name = request.labels.clone
            try:
                yield Outcome(key=name, value=_config(request, results.get(name)))
            except VmclonerError as error:
                yield Outcome(key=name, error=error)

    def _bridge(self, request: BootRequest) -> str:
        key = (request.hypervisor, str(request.nics[0].spec))
        if key not in self._bridges:
            self._bridges[key] = bridge_of(request)
        return self._bridges[key]

    # --- asking ---

    def _ask(self, requests: Sequence[BootRequest]) -> dict[str, Result]:
        """Ask the network for each clone; one run of the resolver for each bridge."""
        groups: dict[tuple[str, bool], list[BootRequest]] = {}
        results: dict[str, Result] = {}
        for request in requests:
            try:
                groups.setdefault((self._bridge(request), request.dry_run), []).append(request)
            except VmclonerError as error:
                results.update(_failed([request], error))
        for (bridge, dry_run), group in groups.items():
            try:
                results.update(self._run(bridge, group, dry_run=dry_run))
            except VmclonerError as error:
                results.update(_failed(group, error))
        return results

    def _run(
        self, bridge: str, requests: Sequence[BootRequest], *, dry_run: bool
    ) -> dict[str, Result]:
        batch = Batch(
            interface=bridge,
            store=str(self._context.host.state / "netboot"),
            timeout=TIMEOUT,
            dry_run=dry_run,
            guests=tuple(
                Member(
                    key=request.labels.clone,
                    mac=request.nics[0].mac,
                    machine=str(request.uuid),
                    folder=None if request.folder is None else str(request.folder),
                )
                for request in requests
            ),
        )
        with interruptible():  # it gives its leases back
            answer = self._context.runner.run(
                [sys.executable, "-m", "vmcloner_pxe.batch"],
                input=json.dumps(cattrs.unstructure(batch)).encode(),
                timeout=TIMEOUT + 60,
            )
        try:
            results = cattrs.structure(json.loads(answer.stdout), list[Result])
        except (ValueError, RecursionError, cattrs.BaseValidationError) as error:
            raise HostCommandError("vmcloner_pxe.batch: no answer that can be read") from error
        return {result.key: result for result in results}


def _failed(requests: Sequence[BootRequest], error: VmclonerError) -> dict[str, Result]:
    names = [request.labels.clone for request in requests]
    return {name: Result(key=name, error=str(error)) for name in names}


def _config(request: BootRequest, result: Result | None) -> BootConfig:
    """Return what a clone boots by what the network said.

    :raises HostCommandError: nothing, or nothing that can be booted; names the clone.
    """
    name = request.labels.clone
    if result is None or result.error is not None:
        raise HostCommandError(f"{name}: {result.error if result else 'the network was not asked'}")
    where = f"{result.label!r} of {result.config}"
    if result.local:
        return BootConfig(devices=("hd",), handover="pygrub", source=f"its own disk, by {where}")
    cmdline = " ".join(filter(None, [result.arguments, _words(request)]))
    size = len(cmdline.encode(errors="surrogatepass"))
    if size > MAX_CMDLINE:
        raise HostCommandError(
            f"{name}: {where}: a command line of {size} bytes, of {MAX_CMDLINE} at most"
        )
    files = {} if request.folder is None else {f: request.folder / f for f in result.files}
    return BootConfig(
        kernel=files.get("kernel"),
        initrd=files.get("initrd"),
        cmdline=cmdline,
        devices=(),
        on_reboot="destroy",
        source=where,
        origins=(result.kernel, *result.initrds),
    )


def _words(request: BootRequest) -> str:
    """Return what the template adds to a clone's command line.

    :raises InvalidRequest: a placeholder isn't known, or it has a line break.
    """
    from vmcloner_core.placeholders import clone_values, fill  # brings jinja2 with it

    template = request.template
    what = f"template {template.name}: kernel.cmdline"
    values = clone_values(request.labels, request.nics, request.values)
    text = fill(template.kernel.cmdline if template.kernel else "", values, what=what)
    if CONTROL.search(text):
        raise InvalidRequest(f"{what}: has a line break or another control character")
    return text


def _program() -> Path:
    """Return where the command is: beside the Python that runs, else on the PATH."""
    beside = Path(sys.executable).with_name("pypxeboot")
    found = str(beside) if beside.is_file() else shutil.which("pypxeboot")
    if found is None:
        raise BackendError(
            "pypxeboot: not installed", hint="it comes with vmcloner: reinstall that"
        )
    return Path(found).absolute()


@hookimpl
def vmcloner_boot_provider() -> BootBackend:
    """Describe the backend."""
    return BootBackend(
        api=1,
        name="pypxeboot",
        networks=True,
        description="DHCP, TFTP and PXELINUX, done by the host for the guest",
        factory=Pypxeboot,
        hypervisors=frozenset({"kvm", "xen"}),
        at_start=frozenset({"kvm"}),
        cmdline=True,
    )
