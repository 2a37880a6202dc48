"""Warm forks: QEMU guests that continue from one file with the memory of a guest that has booted.

https://www.qemu.org/docs/master/devel/migration/mapped-ram.html tells of another way; this one also
shares the memory: the parent's is a file, mapped shared, which QEMU's migration leaves out
(``x-ignore-shared``). Each fork maps that file privately: a page is copied when a fork writes it.

A fork is a domain of ours that is started from its own definition, without cards and seed, with
arguments that libvirt has no XML for, until it stops; libvirt then has the definition again. The
places of cards and seed on the PCI bus stay free for them, so they have them when they are plugged.

``memory``     the guest's, read by all forks
``devices``    QEMU's migration stream without the memory
``warm.json``  what both files were like, what the definition was, and with what they were written;
               written last
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from lxml import etree

from vmcloner_core.cancelling import pause
from vmcloner_core.drivers import WarmInterface
from vmcloner_core.errors import (
    BackendError,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    WrongState,
)
from vmcloner_core.model import DomainSpec, Outcome, State
from vmcloner_core.os_errors import translated
from vmcloner_core.units import format_size
from vmcloner_libvirt import operations, secrets
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.conditions import state_of
from vmcloner_libvirt.metadata import macs, parse, path_of
from vmcloner_libvirt.users import owner_of_qemu

if TYPE_CHECKING:
    from vmcloner_libvirt.kvm import KvmDriver

Change = Callable[[str, Callable[[Any, str], bool]], Outcome[None]]
MEMORY, DEVICES, MANIFEST = "memory", "devices", "warm.json"
MAX_MANIFEST = 65536
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
BLOCK = "warm"
"""QEMU's name for the block of memory; the same in a parent and its forks."""
MIGRATION, LOOK = 300.0, 0.01
"""Seconds that QEMU may take for its devices' state, and between two looks."""
FILES = 9_001_000
"""The version of QEMU (9.1.0) from which it is given files as ``file:``."""
_FULL = 1 << 40
_NOT_SHARED = {
    "filesystem": "a shared folder",
    "hostdev": "a device of the host",
    "shmem": "shared memory",
    "memory": "memory that is plugged in",
    "tpm": "a TPM",
    "vsock": "a vsock address",
    "interface[@type='vhostuser']": "a vhost-user card",
    "interface[@type='hostdev']": "a device of the host",
    "disk[@type='vhostuser']": "a vhost-user disk",
}
_SETTINGS = {
    "memoryBacking": "memory of its own kind (memoryBacking)",
    "cpu/numa": "NUMA nodes",
    "launchSecurity": "encrypted memory",
    "os[@firmware]": "EFI firmware, whose variables are in its memory",
    f"{{{QEMU}}}commandline": "arguments of its own for QEMU",
}
_OWN = (
    *("name", "uuid", "genid", "title", "description", "metadata", "os/cmdline"),
    *("devices/disk/source", "devices/disk/backingStore", "devices/channel/source"),
    *("devices/serial/source", "devices/serial/log", "devices/console"),
)
"""What differs between domains with the same devices."""


class Warm(WarmInterface):
    """Forks of one hypervisor's domains. Thread-safe.

    :param change: runs an operation on a domain; it tells whether it changed something.
    """

    def __init__(self, driver: KvmDriver, change: Change) -> None:
        self._driver = driver
        self._change = change

    def depends(self, spec: DomainSpec) -> Mapping[str, str]:
        """See :meth:`WarmInterface.depends`."""
        rendered = self._driver.prepare(attrs.evolve(spec, nics=(), seed=None))
        root = parse(rendered.xml)
        _check(root, f"template {spec.labels.template}")
        if spec.seed is not None and spec.options.disk_bus != "virtio":
            raise InvalidRequest(
                f"template {spec.labels.template}: a running guest can't be given its seed on the "
                f"bus {spec.options.disk_bus}",
                hint='domain.disk_bus = "virtio"',
            )
        kind, machine = root.get("type"), root.find("os/type").get("machine")

        def ask(connection: Any) -> Mapping[str, str]:
            found = parse(connection.getDomainCapabilities(None, None, machine, kind))
            return {
                **self._programs(connection, root),
                "path": str(found.findtext("path")),
                "machine": str(found.findtext("machine")),
                "acceleration": str(kind),
            }

        shape = hashlib.sha256(rendered.shape.encode()).hexdigest()[:16]
        own = {"memory": str(spec.memory), "vcpus": str(spec.vcpus), "devices": shape}
        return {**self._driver.connections.ask(ask), **own}

    def _programs(self, connection: Any, root: Any) -> Mapping[str, str]:
        """Return what the state of devices is read by, and which processor that has: cheap."""
        return {
            "qemu": _version(connection.getVersion()),
            "libvirt": _version(connection.getLibVersion()),
            "processor": self._processor(root),
        }

    def _processor(self, root: Any) -> str:
        """Return the processor that guests see: the host's own only with KVM."""
        cpu = root.find("cpu")
        asked = "default" if cpu is None else cpu.findtext("model") or cpu.get("mode")
        host = self._driver.capabilities.find("host/cpu")
        if root.get("type") != "kvm" or host is None:
            return str(asked)
        known = copy.deepcopy(host)
        for counter in known.findall("counter"):  # measured anew at each boot of the host
            known.remove(counter)
        for element in known.iter():
            element.tail = None
        digest = hashlib.sha256(etree.tostring(known, method="c14n")).hexdigest()[:8]
        return f"{asked} {host.findtext('model')} {digest}"

    def boot(self, name: str, folder: Path) -> None:
        """See :meth:`WarmInterface.boot`."""

        def boot(connection: Any, name: str) -> bool:
            domain = operations.ours(connection, name)
            if domain.isActive():
                domain.destroy()
            root = parse(operations.definition(domain))
            _check(root, name)
            self._make_memory(folder, _memory(root))
            secrets.provide(connection, _text(root))
            connection.createXML(self._once(root, folder, share=True), 0)
            return True

        self._change(name, boot).unwrap()

    def save(self, name: str, folder: Path) -> None:
        """See :meth:`WarmInterface.save`."""

        def save(connection: Any, name: str) -> bool:
            domain = operations.ours(connection, name)
            if state_of(*domain.state()) not in (State.RUNNING, State.PAUSED):
                raise WrongState(
                    f"{name}: it doesn't run any more", hint="vmcloner console " + name
                )
            if not _maps(domain, folder):
                raise WrongState(f"{name}: it wasn't booted with its memory in {folder}")
            if state_of(*domain.state()) is State.RUNNING:
                domain.suspend()
            root = parse(operations.definition(domain))
            _written(domain, folder / DEVICES)
            domain.destroy()  # what it wrote to its memory until then is in the file
            _seal(folder, _fingerprint(self._plain(root)), self._programs(connection, root))
            return True

        self._change(name, save).unwrap()

    def check(self, folder: Path) -> None:
        """See :meth:`WarmInterface.check`."""
        _whole(folder)

    def load(self, names: Sequence[str], folder: Path) -> Iterator[Outcome[None]]:
        """See :meth:`WarmInterface.load`."""

        def load(connection: Any, name: str) -> bool:
            domain = operations.ours(connection, name)
            if domain.isActive():
                if state_of(*domain.state()) is not State.PAUSED:
                    raise WrongState(f"{name} runs already", hint=f"vmcloner stop {name}")
                if not _maps(domain, folder):
                    raise WrongState(
                        f"{name} was started by other means", hint=f"vmcloner stop {name}"
                    )
                domain.destroy()
            root = parse(operations.definition(domain))
            self._check_same(connection, root, name, folder)
            secrets.provide(connection, _text(root))
            xml = self._once(root, folder, share=False)
            domain = connection.createXML(xml, libvirt().VIR_DOMAIN_START_PAUSED)
            try:
                _read(domain, folder / DEVICES)
            except BaseException:
                with contextlib.suppress(libvirt().libvirtError):
                    domain.destroy()
                raise
            return True

        for name in names:
            yield self._change(name, load)

    def _check_same(self, connection: Any, root: Any, name: str, folder: Path) -> None:
        """Check that memory is that of a domain with these devices, and these programs.

        :raises WrongState: it isn't; says what differs.
        """
        known, now = _whole(folder), self._programs(connection, root)
        differs = ""
        if _fingerprint(self._plain(root)) != known["devices"]:
            differs = f"its definition has other devices than the memory in {folder}"
        for subject, text in now.items():
            if known["programs"].get(subject) != text:
                saved = known["programs"].get(subject)
                differs = f"its memory was saved with {subject} {saved}, here is {text}"
        if differs:
            raise WrongState(
                f"{name}: {differs}",
                hint=f"vmcloner stop --kill {name}: it then boots from its disk",
            )

    def go_on(self, seeds: Mapping[str, Path | None], serial: str) -> Iterator[Outcome[None]]:
        """See :meth:`WarmInterface.go_on`."""

        def go_on(connection: Any, name: str) -> bool:
            domain, seed = operations.ours(connection, name), seeds[name]
            if seed is not None and str(seed) not in domain.XMLDesc(0):
                disk = _seed_disk(parse(operations.definition(domain)), seed, serial)
                domain.attachDeviceFlags(disk, libvirt().VIR_DOMAIN_AFFECT_LIVE)
            if state_of(*domain.state()) is State.PAUSED:
                domain.resume()
            return True

        for name in seeds:
            yield self._change(name, go_on)

    def connect(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`WarmInterface.connect`."""

        def connect(connection: Any, name: str) -> bool:
            domain = operations.ours(connection, name)
            definition, there = parse(operations.definition(domain)), macs(parse(domain.XMLDesc(0)))
            placed = self._seed(definition) is not None
            wanted = [
                card
                for card in definition.iterfind("devices/interface")
                if card.find("mac").get("address").lower() not in there
            ]
            for card in wanted:
                _unplaced(card, placed=placed)
                domain.attachDeviceFlags(_text(card), libvirt().VIR_DOMAIN_AFFECT_LIVE)
            return bool(wanted)

        for name in names:
            yield self._change(name, connect)

    # --- domains for one start ------------------------------------------------------------------

    def _seed(self, root: Any) -> Any:
        """Return the disk of a definition that is the clone's seed, None if it has none."""
        home = self._driver.context.host.records / str(root.findtext("name"))
        for disk in root.iterfind("devices/disk[readonly]"):
            path = path_of(disk.find("source"))
            if path is not None and path.is_relative_to(home):
                return disk
        return None

    def _plain(self, root: Any) -> Any:
        """Return a definition without cards and seed, whose places on the bus stay free."""
        root = copy.deepcopy(root)
        devices, seed = root.find("devices"), self._seed(root)
        for device in (*devices.findall("interface"), *([] if seed is None else [seed])):
            devices.remove(device)
        return root

    def _once(self, definition: Any, folder: Path, *, share: bool) -> str:
        """Return the XML of a start with memory in a file: a parent's, or else a fork's."""
        root = self._plain(definition)
        if not share and root.find("genid") is not None:  # each fork is another generation
            root.find("genid").text = str(uuid.uuid4())
        if root.find("devices/controller[@model='pcie-root']") is not None:  # a place to plug into
            etree.SubElement(root.find("devices"), "controller", type="pci", model="pcie-root-port")
        arguments = [
            *("-machine", f"memory-backend={BLOCK}", "-object"),
            f"memory-backend-file,id={BLOCK},size={_memory(root)},mem-path={folder / MEMORY},"
            f"share={'on' if share else 'off'}",
            *(() if share else ("-incoming", "defer")),
        ]
        line = etree.SubElement(root, f"{{{QEMU}}}commandline", nsmap={"qemu": QEMU})
        for argument in arguments:
            etree.SubElement(line, f"{{{QEMU}}}arg", value=argument)
        return _text(root)

    def _make_memory(self, folder: Path, size: int) -> None:
        """Make an empty file for a guest's memory, which only QEMU's user can read.

        :raises NotEnoughResources: the folder has no room for it.
        """
        if "," in str(folder):
            raise InvalidRequest(f"{folder}: QEMU takes no comma in this path")
        with translated(folder):
            state = os.statvfs(folder)
            if state.f_bavail * state.f_frsize < size:
                free = format_size(state.f_bavail * state.f_frsize)
                raise NotEnoughResources(
                    f"{folder}: {free} free, {format_size(size)} needed for a guest's memory",
                    hint="free space there, then run the same command again",
                )
            folder.chmod(0o711)  # QEMU's user gets through, and sees nothing else
            for name in (MANIFEST, DEVICES, MEMORY):
                (folder / name).unlink(missing_ok=True)
            handle = os.open(folder / MEMORY, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            try:
                os.ftruncate(handle, size)
                owner = owner_of_qemu(self._driver.capabilities)
                if owner is not None and os.geteuid() == 0:
                    os.fchown(handle, *owner)
            finally:
                os.close(handle)


def _maps(domain: Any, folder: Path) -> bool:
    """Tell whether an active domain was started with its memory in a folder."""
    arguments = parse(domain.XMLDesc(0)).iterfind(f"{{{QEMU}}}commandline/{{{QEMU}}}arg")
    return any(f"mem-path={folder / MEMORY}," in each.get("value", "") for each in arguments)


def _text(element: Any) -> str:
    return str(etree.tostring(element, encoding="unicode"))


def _memory(root: Any) -> int:
    """Return the bytes of memory in libvirt's own XML, which has kibibytes."""
    return int(root.findtext("memory")) * 1024


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _check(root: Any, what: str) -> None:
    """Check that the memory of a domain can be used by others.

    :raises InvalidRequest: names what stands against it.
    """
    found = [text for path, text in _NOT_SHARED.items() if root.find(f"devices/{path}") is not None]
    found += [text for path, text in _SETTINGS.items() if root.find(path) is not None]
    if found:
        raise InvalidRequest(
            f"{what}: a guest with {found[0]} can't be forked", hint="create it without --warm"
        )


def _fingerprint(plain: Any) -> str:
    """Return a digest of a plain definition, the same for all domains with the same devices."""
    for path in _OWN:
        for element in plain.findall(path):
            element.getparent().remove(element)
    for element in plain.iter():
        element.text = (element.text or "").strip()
        element.tail = None
    return hashlib.sha256(etree.tostring(plain, method="c14n")).hexdigest()


def _seed_disk(definition: Any, seed: Path, serial: str) -> str:
    """Return the XML of the disk with a seed, in its place if the definition has it."""
    for disk in definition.iterfind("devices/disk[readonly]"):
        if path_of(disk.find("source")) == seed:
            break
    else:
        used = {target.get("dev") for target in definition.iterfind("devices/disk/target")}
        free = next(
            f"vd{letter}" for letter in "bcdefghijklmnopqrstuvwxyz" if f"vd{letter}" not in used
        )
        disk = etree.Element("disk", type="file", device="disk")
        etree.SubElement(disk, "driver", name="qemu", type="raw")
        etree.SubElement(disk, "source", file=str(seed))
        etree.SubElement(disk, "target", dev=free, bus="virtio")
        etree.SubElement(disk, "readonly")
    for known in disk.findall("serial"):
        disk.remove(known)
    etree.SubElement(disk, "serial").text = serial
    return _text(disk)


def _unplaced(device: Any, *, placed: bool) -> None:
    """Let libvirt choose a device's place on the bus, unless it is its own."""
    for address in () if placed else device.findall("address"):
        device.remove(address)


# --- the two files --------------------------------------------------------------------------------


def _seal(folder: Path, devices: str, programs: Mapping[str, str]) -> None:
    """Write what the memory's files are like, once they are on the disk."""
    files: dict[str, Sequence[int]] = {}
    with translated(folder):
        for name in (MEMORY, DEVICES):
            handle = os.open(folder / name, os.O_RDONLY)
            try:
                os.fsync(handle)
                files[name] = _looks(os.fstat(handle))
            finally:
                os.close(handle)
        text = json.dumps({"devices": devices, "programs": dict(programs), "files": files})
        (folder / MANIFEST).write_text(text)


def _looks(status: os.stat_result) -> Sequence[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _whole(folder: Path) -> Mapping[str, Any]:
    """Return what is known of the memory in a folder, if its files are as they were written.

    :raises WrongState: they aren't.
    """
    try:
        with (folder / MANIFEST).open() as stream:
            known = json.loads(stream.read(MAX_MANIFEST))
        for name, looks in known["files"].items():
            if list(_looks((folder / name).stat())) != looks:
                raise WrongState(
                    f"{folder / name} was changed since it was saved",
                    hint="vmcloner template warm makes it anew",
                )
        return {"devices": str(known["devices"]), "programs": dict(known["programs"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongState(
            f"{folder}: the memory there isn't whole", hint="vmcloner template warm makes it anew"
        ) from error


# --- QEMU's monitor: https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html ------------------


def _written(domain: Any, file: Path) -> None:
    """Write the state of a paused domain's devices to a file."""
    with translated(file):
        handle = os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        _leave_out_memory(domain, out=True)
        _command(domain, "migrate-set-parameters", **dict[str, Any]({"max-bandwidth": _FULL}))
        with _handed(domain, handle) as uri:
            _command(domain, "migrate", uri=uri)
            _migrated(domain, f"its devices' state can't be written to {file}")
    finally:
        os.close(handle)


def _read(domain: Any, file: Path) -> None:
    """Give the state of its devices to a domain that waits for it."""
    with translated(file):
        handle = os.open(file, os.O_RDONLY)
    try:
        _leave_out_memory(domain, out=True)
        with _handed(domain, handle) as uri:
            _command(domain, "migrate-incoming", uri=uri)
            _migrated(domain, f"QEMU doesn't take the devices' state in {file}")
        _leave_out_memory(domain, out=False)  # what is saved of it later has its memory
    finally:
        os.close(handle)


@contextlib.contextmanager
def _handed(domain: Any, handle: int) -> Iterator[str]:
    """Hand an open file to QEMU; yields the URI for a migration to or from it.

    Files as ``fd:`` are deprecated since QEMU 9.1, and refused later; ``file:`` is new in 8.2.
    """
    if domain.connect().getVersion() < FILES:
        _command(domain, "getfd", [handle], fdname=BLOCK)  # the migration closes it
        yield f"fd:{BLOCK}"
        return
    given = _command(domain, "add-fd", [handle])["fdset-id"]
    yield f"file:/dev/fdset/{given}"
    _command(domain, "remove-fd", **{"fdset-id": given})


def _leave_out_memory(domain: Any, *, out: bool) -> None:
    """Have QEMU leave out memory that is a shared file when it migrates, or not."""
    ignore = {"capability": "x-ignore-shared", "state": out}
    _command(domain, "migrate-set-capabilities", capabilities=[ignore])


def _migrated(domain: Any, failure: str) -> None:
    """Wait until QEMU is done.

    :raises HostCommandError: it fails, or takes too long.
    """
    end = time.monotonic() + MIGRATION
    while time.monotonic() < end:
        said = _command(domain, "query-migrate")
        if said.get("status") == "completed":
            return
        if said.get("status") in ("failed", "cancelled"):
            raise HostCommandError(
                f"{domain.name()}: {failure}: {said.get('error-desc', 'failed')}"
            )
        pause(LOOK)
    raise HostCommandError(f"{domain.name()}: {failure}: no end after {MIGRATION:g} s")


def _command(domain: Any, name: str, files: Sequence[int] = (), **arguments: Any) -> Any:
    """Return QEMU's answer to a command.

    :raises HostCommandError: it refuses it. :raises BackendError: libvirt passes no files.
    """
    import libvirt_qemu

    text = json.dumps({"execute": name, "arguments": arguments})
    if not files:
        answer = libvirt_qemu.qemuMonitorCommand(domain, text, 0)
    else:
        passing: Callable[..., Any] | None = getattr(
            libvirt_qemu, "qemuMonitorCommandWithFiles", None
        )
        if passing is None:
            raise BackendError("warm forks need libvirt 8.2 and its Python module of that version")
        answer = passing(domain, text, list(files), 0)
        answer = answer[0] if isinstance(answer, tuple | list) else answer
    said = json.loads(answer)
    if "error" in said:
        raise HostCommandError(f"{domain.name()}: {name}: {said['error'].get('desc', 'refused')}")
    return said["return"]
