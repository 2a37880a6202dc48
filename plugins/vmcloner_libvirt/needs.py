"""What a domain's XML needs of its host, checked before anything is made.

The questions go to libvirt (capabilities, domain capabilities, networks) and to the host's files,
never to a guess. What they leave open is asked of libvirt as a whole: it makes QEMU's command line
of the domain without starting anything.

https://libvirt.org/formatdomaincaps.html
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
from lxml import etree

from vmcloner_core.errors import (
    BackendError,
    HostCommandError,
    InvalidRequest,
    NotFound,
    VmclonerError,
    WrongState,
    did_you_mean,
    shown,
)
from vmcloner_core.model import Needs
from vmcloner_core.process import CommandRunner
from vmcloner_libvirt import firewall, firmware, secrets, tpm
from vmcloner_libvirt.bridges import LABEL
from vmcloner_libvirt.connection import Connections, is_session
from vmcloner_libvirt.metadata import parse

T = TypeVar("T")
INTERFACES = Path("/sys/class/net")
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
VHOST_USER = (Path("/etc/qemu/vhost-user"), Path("/usr/share/qemu/vhost-user"))
MOUNTS = Path("/proc/mounts")
CALLS_IPTABLES = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
PCI_DEVICES = Path("/sys/bus/pci/devices")
_KIB = {"b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 10**6, "M": 1024**2,
        "MiB": 1024**2, "GB": 10**9, "G": 1024**3, "GiB": 1024**3}  # fmt: skip
_EMULATOR = "apt-get install qemu-system-x86"
_PACKAGES = {"x86_64": "qemu-system-x86", "i686": "qemu-system-x86", "aarch64": "qemu-system-arm"}


@attrs.frozen
class Requirements:
    """Checks of domains on one host. Thread-safe; what the host answers is kept for the run.

    :param kvm: returns why KVM doesn't work and how to mend that; None where it works.
    :param capabilities: returns libvirt's capabilities, as XML.
    """

    runner: CommandRunner
    connections: Connections
    kvm: Callable[[], tuple[str, str] | None]
    capabilities: Callable[[], Any]
    _kept: dict[object, Any] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def check(
        self, xml: str, what: str, *, given: Iterable[Path | None] = (), own: bool = False
    ) -> Needs:
        """Check that this host has what a domain needs to be defined and to start.

        :param what: what the domain is of, for messages. :param given: files that are checked
            elsewhere, or that don't exist yet. :param own: whether a user wrote a part of the XML.
        :raises NotFound: a network, an interface or a file doesn't exist.
        :raises WrongState: a network isn't running.
        :raises BackendError: a program or firmware isn't installed, or KVM doesn't work.
        :raises InvalidRequest: the host's QEMU or libvirt doesn't know what the XML asks for.
        """
        kind = self._asked("kind", lambda connection: connection.getType())
        if kind == "TEST":
            return Needs()  # its machines need nothing
        root = parse(xml)
        if own:
            _check_schema(root, what)
        bridges = [b for card in root.iterfind("devices/interface") for b in self._card(card, what)]
        _check_files(root, what, {str(path) for path in given})
        page = None
        if kind == "QEMU":
            _check_virtiofs(root, what)
            self._check_emulator(root, what)
            page = _page(root)
            if page is not None:
                _check_mounted(what)
            self._rehearse(xml, what)
        return Needs(warnings=self._cut_off(bridges, what), page=page)

    def _asked(self, key: object, ask: Callable[[Any], T]) -> T:
        """Return what libvirt answers, asked once for a run."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self.connections.ask(ask)
            found: T = self._kept[key]
            return found

    # --- networks -----------------------------------------------------------------------------

    def _card(self, card: Any, what: str) -> Iterator[str]:
        """Check what a card is connected to; yields the bridge whose packets the host forwards."""
        kind, source = card.get("type"), card.find("source")
        port = card.find("virtualport")
        switch = port is not None and port.get("type") == "openvswitch"
        if source is None:
            return
        if kind == "bridge":
            name = source.get("bridge", "")
            self._check_bridge(name, what, switch=switch)
            if not switch and _is_filtered(name):
                yield name
        elif kind == "direct":
            _check_interface(source.get("dev", ""), what)
        elif kind == "network":
            yield from self._network(source.get("network", ""), what)
        elif kind == "vhostuser" and source.get("mode") == "client":
            _check_path(source.get("path"), what, "interface")
        wanted = card.find("filterref")
        if wanted is not None:
            self._check_filter(wanted.get("filter", ""), what)

    def _check_filter(self, name: str, what: str) -> None:
        known = self._asked("filters", lambda connection: connection.listNWFilters())
        if name not in known:
            raise NotFound(
                f"{what}: this host has no network filter {name!r}", hint=did_you_mean(name, known)
            )

    def _check_bridge(self, name: str, what: str, *, switch: bool) -> None:
        if switch:
            self._check_switch(name, what)
            return
        if not _is_there(INTERFACES, name):
            raise NotFound(
                f"{what}: this host has no bridge {name!r}",
                hint=f"vmcloner host prepare network --bridge --name {name}, or another source",
            )
        if not (INTERFACES / name / "bridge").is_dir():
            raise InvalidRequest(
                f"{what}: {name!r} is no Linux bridge",
                hint="name a bridge; for one of Open vSwitch, use a libvirt network that has "
                '<virtualport type="openvswitch"/>',
            )

    def _check_switch(self, name: str, what: str) -> None:
        if self.runner.which("ovs-vsctl") is None:
            raise BackendError(
                f"{what}: Open vSwitch is not installed", hint="apt-get install openvswitch-switch"
            )
        try:
            self.runner.run(["ovs-vsctl", "--timeout=5", "br-exists", name], timeout=10)
        except HostCommandError as error:
            if "failed with 2:" not in error.message:  # see ovs-vsctl(8), br-exists
                raise BackendError(f"{what}: Open vSwitch: {error.message}") from error
            raise NotFound(
                f"{what}: Open vSwitch has no bridge {name!r}", hint=f"ovs-vsctl add-br {name}"
            ) from error

    def _network(self, name: str, what: str) -> Iterator[str]:
        def look(connection: Any) -> dict[str, tuple[bool, str]]:
            return {
                n.name(): (bool(n.isActive()), n.XMLDesc(0)) for n in connection.listAllNetworks()
            }

        networks = self._asked("networks", look)
        if name not in networks:
            raise NotFound(
                f"{what}: this host has no network {name!r}",
                hint=f"vmcloner host prepare network --name {name}, or name another source",
            )
        active, text = networks[name]
        if not active:
            raise WrongState(
                f"{what}: network {name!r} isn't running", hint=f"virsh net-start {name}"
            )
        root = parse(text)
        forward, bridge = root.find("forward"), root.find("bridge")
        mode = forward.get("mode", "nat") if forward is not None else ""
        port = root.find("virtualport")
        switch = port is not None and port.get("type") == "openvswitch"
        named = f"{what}: network {name!r}"
        if bridge is not None and bridge.get("name"):
            if mode == "bridge":
                self._check_bridge(bridge.get("name"), named, switch=switch)
            elif not _is_there(INTERFACES, bridge.get("name")):
                raise WrongState(
                    f"{named} has lost its bridge {bridge.get('name')!r}",
                    hint=f"virsh net-destroy {name} && virsh net-start {name}",
                )
            if mode in ("nat", "route", "open"):
                yield bridge.get("name")
        elif mode in ("bridge", "vepa", "private", "passthrough"):
            devices = [forward.get("dev"), *(e.get("dev") for e in forward.iterfind("interface"))]
            for device in filter(None, devices):
                _check_interface(device, named)

    def _cut_off(self, bridges: Iterable[str], what: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(bridges))
        dropped = firewall.dropped(self.runner, names) if names else ()
        return tuple(f"{what}: {firewall.lost(name)} ({firewall.mend(name)})" for name in dropped)

    # --- the emulator -------------------------------------------------------------------------

    def _check_emulator(self, root: Any, what: str) -> None:
        kind = root.get("type", "")
        given = root.findtext("devices/emulator")
        if given is not None and not os.access(given, os.X_OK):
            raise BackendError(f"{what}: there is no emulator {given}", hint=_EMULATOR)
        os_type = root.find("os/type")
        if os_type is None:
            return  # the schema or libvirt says so
        known = self.capabilities()
        arch = os_type.get("arch") or known.findtext("host/cpu/arch") or "x86_64"
        found = known.find(f"guest/arch[@name='{arch}']") if '"' not in arch else None
        if found is None and given is None:
            package = _PACKAGES.get(arch, "qemu-system-misc")
            raise BackendError(
                f"{what}: no QEMU for {shown(arch, 40)} is installed",
                hint=f"apt-get install {package}",
            )
        if kind == "kvm" and (broken := self._no_kvm(found)) is not None:
            raise BackendError(f"{what}: it needs KVM: {broken[0]}", hint=broken[1] or None)
        machine = os_type.get("machine")
        if found is not None and given is None:
            _check_machine(machine, found, what)
        features = parse(self._features(given, arch, machine, kind, what))
        _check_firmware(root, features, what)
        _check_tpm(root, features, what, self.connections.uri)
        _check_cpu(root, features, what)

    def _no_kvm(self, found: Any) -> tuple[str, str] | None:
        types = {e.get("type") for e in found.iterfind("domain")} if found is not None else {"kvm"}
        broken = self.kvm()
        if broken is None and "kvm" not in types:
            return "libvirt doesn't find it", "vmcloner host check"
        return broken

    def _features(
        self, emulator: str | None, arch: str, machine: str | None, kind: str, what: str
    ) -> str:
        key = ("features", emulator, arch, machine, kind)
        try:
            return self._asked(
                key,
                lambda c: str(c.getDomainCapabilities(emulator, arch, machine, kind, 0)),
            )
        except VmclonerError as error:
            if error.exit_code == BackendError.exit_code:
                raise
            reason = error.message.removeprefix(f"{self.connections.uri}: ")
            raise InvalidRequest(f"{what}: {reason}", hint="vmcloner host check") from error

    def _rehearse(self, xml: str, what: str) -> None:
        """Have libvirt make QEMU's command line for a domain; it starts and writes nothing.

        In a user's session without cards: libvirt opens a TAP device for each, whatever its type.
        """
        if is_session(self.connections.uri):
            root = parse(xml)
            for card in root.findall("devices/interface"):
                card.getparent().remove(card)
            xml = str(etree.tostring(root, encoding="unicode"))

        def rehearse(connection: Any) -> None:
            secrets.provide(connection, xml)  # in the daemon's memory: it wants them here too
            connection.domainXMLToNative("qemu-argv", xml, 0)

        try:
            self.connections.ask(rehearse)
        except VmclonerError as error:
            if isinstance(error, BackendError):
                return  # this daemon can't say
            reason = error.message.removeprefix(f"{self.connections.uri}: ")
            raise InvalidRequest(
                f"{what}: its domain can't be started: {reason}",
                hint="change [domain] in the template, or its domain.xml",
            ) from error


# --- parts of the XML ---------------------------------------------------------------------------


def _is_there(folder: Path, name: str) -> bool:
    return bool(name) and "/" not in name and name not in (".", "..") and (folder / name).exists()


def _check_interface(name: str, what: str) -> None:
    if not _is_there(INTERFACES, name):
        known = [path.name for path in INTERFACES.iterdir()] if INTERFACES.is_dir() else []
        raise NotFound(
            f"{what}: this host has no network interface {name!r}", hint=did_you_mean(name, known)
        )


def _is_filtered(bridge: str) -> bool:
    """Tell whether the packets of a bridge's guests pass the rules for what the host forwards."""
    with contextlib.suppress(OSError):
        if CALLS_IPTABLES.read_text().strip() == "1":
            return True
    with contextlib.suppress(OSError):  # one of vmcloner's own has NAT
        return (INTERFACES / bridge / "ifalias").read_text().startswith(LABEL)
    return False


def _check_path(path: str | None, what: str, where: str) -> None:
    if path is None or not path.startswith("/"):
        return
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"{what}: {path}, named by <{where}>, doesn't exist",
            hint="put it there, or name another",
        ) from error
    except OSError:
        return  # not for this user to see: libvirt may


def _check_files(root: Any, what: str, given: set[str]) -> None:
    """Check that the files that the XML names are there, but those that are ``given``."""
    for path, where in _named_files(root):
        if path is not None and path not in given:
            _check_path(path, what, where)


def _named_files(root: Any) -> Iterator[tuple[str | None, str]]:
    for key in ("kernel", "initrd", "dtb", "loader"):
        text = root.findtext(f"os/{key}")
        yield text and text.strip(), key
    nvram = root.find("os/nvram")
    if nvram is not None:
        yield nvram.get("template"), "nvram"
    yield root.findtext("os/acpi/table"), "table"
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        if source is not None and source.get("startupPolicy", "mandatory") == "mandatory":
            yield source.get("file"), "disk"
            yield source.get("dev"), "disk"
            yield source.get("dir"), "disk"
    for where, attribute, key in (
        ("devices/filesystem/source", "dir", "filesystem"),
        ("devices/filesystem/source", "file", "filesystem"),
        ("devices/filesystem/binary", "path", "binary"),
        ("devices/interface/rom", "file", "rom"),
        ("devices/hostdev/rom", "file", "rom"),
        ("devices/input/source", "dev", "input"),
        ("devices/input/source", "evdev", "input"),
        ("devices/serial[@type='dev']/source", "path", "serial"),
        ("devices/parallel[@type='dev']/source", "path", "parallel"),
        ("devices/tpm/backend/device", "path", "tpm"),
    ):
        for element in root.iterfind(where):
            yield element.get(attribute), key
    for backend in root.iterfind("devices/rng/backend[@model='random']"):
        yield (backend.text or "").strip() or None, "rng"
    for address in root.iterfind("devices/hostdev[@type='pci']/source/address"):
        with contextlib.suppress(TypeError, ValueError):
            parts = [int(address.get(k, "0"), 0) for k in ("domain", "bus", "slot", "function")]
            yield str(PCI_DEVICES / "{:04x}:{:02x}:{:02x}.{:x}".format(*parts)), "hostdev"


def _check_virtiofs(root: Any, what: str) -> None:
    for share in root.iterfind("devices/filesystem"):
        driver = share.find("driver")
        if driver is None or driver.get("type") != "virtiofs" or share.find("binary") is not None:
            continue
        source = share.find("source")
        if source is not None and source.get("socket"):
            continue
        if not any(os.access(path, os.X_OK) for path in _virtiofsds()):
            raise BackendError(
                f"{what}: virtiofsd is not installed", hint="apt-get install virtiofsd"
            )


def _virtiofsds() -> Iterator[str]:
    """Yield the programs that are described as virtiofsd to libvirt (QEMU's vhost-user.json)."""
    for file in (file for folder in VHOST_USER for file in sorted(folder.glob("*.json"))):
        with contextlib.suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
            said = json.loads(file.read_text(encoding="utf-8"))
            if said.get("type") == "fs":
                yield str(said["binary"])


def has_virtiofsd() -> bool:
    """Tell whether libvirt would find virtiofsd."""
    return any(os.access(path, os.X_OK) for path in _virtiofsds())


def _check_machine(machine: str | None, arch: Any, what: str) -> None:
    known = {e.text for e in arch.iter("machine")} | {
        e.get("canonical") for e in arch.iter("machine")
    }
    if machine is not None and machine not in known:
        names = [str(name) for name in known if name]
        raise InvalidRequest(
            f"{what}: this host's QEMU has no machine type {machine!r}",
            hint=did_you_mean(machine, names),
        )


def has_firmware(features: Any) -> bool:
    """Tell whether a domain's capabilities have UEFI firmware."""
    return "efi" in _values(features, "os/enum[@name='firmware']")


def has_tpm(features: Any) -> bool:
    """Tell whether a domain's capabilities have an emulated TPM."""
    return "emulator" in _values(features, "devices/tpm/enum[@name='backendModel']")


def _values(features: Any, path: str) -> set[str]:
    return {element.text for element in features.iterfind(f"{path}/value")}


def _check_firmware(root: Any, features: Any, what: str) -> None:
    wanted = root.find("os").get("firmware")
    if wanted is None:
        return
    if wanted not in _values(features, "os/enum[@name='firmware']"):
        missing = "UEFI firmware (OVMF)" if wanted == "efi" else f"firmware {wanted!r}"
        raise BackendError(
            f"{what}: this host has no {missing}",
            hint='apt-get install ovmf, or firmware = "bios" in [domain]',
        )
    secure = root.find("os/firmware/feature[@name='secure-boot'][@enabled='yes']") is not None
    if secure and "yes" not in _values(features, "os/loader/enum[@name='secure']"):
        raise BackendError(
            f"{what}: this host has no firmware for secure boot with this machine type",
            hint="apt-get install ovmf",
        )


def _check_tpm(root: Any, features: Any, what: str, uri: str) -> None:
    for backend in root.iterfind("devices/tpm/backend[@type='emulator']"):
        if not has_tpm(features):
            raise BackendError(
                f"{what}: this host has no TPM emulator (swtpm)",
                hint="apt-get install swtpm swtpm-tools",
            )
        version = backend.get("version")
        known = _values(features, "devices/tpm/enum[@name='backendVersion']")
        if version is not None and known and version not in known:
            raise BackendError(f"{what}: this host's TPM emulator has no version {version!r}")
        made = firmware.tpm(str(root.findtext("uuid")), uri)
        closed = None if is_session(uri) or (made and os.path.lexists(made)) else tpm.closed_keys()
        if closed is not None:
            raise BackendError(f"{what}: its TPM can't be made: {closed[0]}", hint=closed[1])


def _check_cpu(root: Any, features: Any, what: str) -> None:
    cpu = root.find("cpu")
    if cpu is None:
        return
    mode = cpu.get("mode", "custom")
    found = features.find(f"cpu/mode[@name='{mode}']") if mode.replace("-", "").isalpha() else None
    if found is None or found.get("supported") != "yes":
        raise InvalidRequest(
            f"{what}: this host has no CPU mode {mode!r} for {root.get('type')} guests",
            hint='leave cpu out of [domain], or say "maximum"',
        )
    model = (cpu.findtext("model") or "").strip()
    if mode != "custom" or not model:
        return
    models = {e.text: e.get("usable") for e in found.iterfind("model")}
    if model not in models:
        raise InvalidRequest(
            f"{what}: this host's QEMU has no CPU model {model!r}",
            hint=did_you_mean(model, [str(name) for name in models]),
        )
    lenient = cpu.get("check") == "none" or cpu.find("feature") is not None
    if root.get("type") == "kvm" and models[model] == "no" and not lenient:
        raise InvalidRequest(
            f"{what}: this host's processor lacks features of CPU model {model!r}",
            hint='cpu = "host-model", or a model that virsh domcapabilities calls usable',
        )


def _page(root: Any) -> int | None:
    """Return the bytes of the huge pages that a guest's memory is made of, 0 for the default size.

    None without huge pages.
    """
    if root.find("memoryBacking/hugepages") is None:
        return None
    page = root.find("memoryBacking/hugepages/page")
    if page is None:
        return 0
    with contextlib.suppress(ValueError):
        return int(page.get("size", "0")) * _KIB.get(page.get("unit", "KiB"), 1024)
    return 0


def _check_mounted(what: str) -> None:
    with contextlib.suppress(OSError):
        kinds = {line.split()[2] for line in MOUNTS.read_text().splitlines()}
        if "hugetlbfs" not in kinds:
            raise BackendError(
                f"{what}: it has huge pages, but hugetlbfs is not mounted",
                hint="mount -t hugetlbfs hugetlbfs /dev/hugepages, and restart libvirtd",
            )


@functools.cache
def _schema() -> Any:
    return etree.RelaxNG(etree.parse(str(SCHEMA))) if SCHEMA.exists() else None


def _check_schema(root: Any, what: str) -> None:
    """Check XML that a user wrote as libvirt does when it defines the first clone."""
    try:
        schema = _schema()
    except (OSError, etree.LxmlError):
        return  # libvirt's files are damaged: it says so itself
    if schema is None or schema.validate(root):
        return
    devices = root.find("devices")
    refused = ""
    for device in list(devices) if devices is not None else []:
        place = devices.index(device)
        devices.remove(device)
        if schema.validate(root):
            refused = f", in <{shown(str(device.tag), 40)}>"
        devices.insert(place, device)
    raise InvalidRequest(
        f"{what}: libvirt's schema refuses its domain XML{refused}",
        hint="https://libvirt.org/formatdomain.html says how to write it",
    )
