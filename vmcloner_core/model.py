"""The words of vmcloner as values: frozen, typed, in integer bytes and seconds.

Nothing here does I/O. What a driver needs to know is handed to it in these.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import attrs

from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.names import (
    check_fleet,
    check_template,
    clone_name,
    split_volume,
    volume_name,
)
from vmcloner_core.units import Size

T_co = TypeVar("T_co", covariant=True)


class CloneMode(enum.Enum):
    """How a clone's volume comes from its template: sharing its blocks, or a copy of its own."""

    LINKED = "linked"
    FULL = "full"


class State(enum.Enum):
    """State of a clone, as ``list`` shows it."""

    ALLOCATED = "allocated"
    """Its volume exists, its domain doesn't (yet)."""
    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"
    ORPHAN = "orphan"
    """Its domain exists, its volume is gone."""


_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def check_mac(value: str) -> str:
    """Return a unicast MAC address in lower case with colons.

    :raises InvalidRequest: it isn't one.
    """
    mac = str(value).lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise InvalidRequest(f"not a unicast MAC address: {value!r}", hint="like 52:54:00:12:34:56")
    return mac


# --- labels -------------------------------------------------------------------------------------

LABEL_VERSION = "1"


@attrs.frozen(kw_only=True)
class Labels:
    """Whose a resource is: carried by every volume, domain and seed from the moment it exists.

    ``created`` and ``expires`` are UTC in ISO 8601, seconds precision. ``storage`` and
    ``hypervisor`` name the backends (as settings name them) that hold the clone's parts. ``boot``
    names the boot provider that is asked at each start, None where the definition says it all.
    """

    fleet: str = attrs.field(validator=lambda _i, _a, v: check_fleet(v) and None)
    index: int
    template: str = attrs.field(validator=lambda _i, _a, v: check_template(v) and None)
    run: str
    owner: str
    created: str
    storage: str
    hypervisor: str
    expires: str | None = None
    boot: str | None = None

    @property
    def clone(self) -> str:
        """Name of the clone that these labels belong to."""
        return clone_name(self.fleet, self.index)

    def same_clone(self, other: Labels) -> bool:
        """Tell whether both label parts of one clone: same fleet, index and template.

        Run, owner and times may differ: the same command run again makes the same clone.
        """
        return (self.fleet, self.index, self.template) == (other.fleet, other.index, other.template)

    def to_mapping(self) -> dict[str, str]:
        """Return the labels as short strings, for tags, attributes or metadata."""
        values = {
            field.name: str(value)
            for field in attrs.fields(Labels)
            if (value := getattr(self, field.name)) is not None
        }
        return {"version": LABEL_VERSION, **values}

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> Labels | None:
        """Return the labels that ``values`` spell, or None where they aren't vmcloner's.

        What a newer version may have added is ignored; what is malformed is not ours.
        """
        known = {field.name for field in attrs.fields(cls)}
        wanted: dict[str, object] = {k: v for k, v in values.items() if k in known}
        try:
            if values.get("version") != LABEL_VERSION:
                return None
            wanted["index"] = int(values["index"])
            labels = cls(**wanted)  # type: ignore[arg-type]
            labels.clone  # noqa: B018 - raises where fleet and index make no name
        except (KeyError, TypeError, ValueError, InvalidRequest):
            return None
        return labels


# --- templates ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ImageSource:
    """Where a template's disk image comes from: exactly one of builder, path and url.

    ``builder`` names an image builder plugin. ``format`` is ``raw``, ``qcow2`` or None for "by
    its suffix". ``options`` are the builder's. ``sha256`` is required with a url, hexadecimal;
    ``upstream`` is for people.
    """

    builder: str | None = None
    path: Path | None = None
    url: str | None = None
    sha256: str | None = None
    format: Literal["raw", "qcow2"] | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        given = [n for n in ("builder", "path", "url") if getattr(self, n) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                "image needs exactly one of builder, path and url, not "
                + (" and ".join(given) or "none")
            )
        if self.options and self.builder is None:
            raise InvalidRequest("image options: are for a builder, and there is none")
        if self.url is not None and not re.match(r"https?://", self.url):
            raise InvalidRequest(f"image url: not http or https: {self.url!r}")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise InvalidRequest("image sha256: not 64 hexadecimal digits")


@attrs.frozen(kw_only=True)
class KernelSpec:
    """Direct kernel boot: files of the host, and a command line that may hold ``{{ name }}``.

    Relative paths are relative to the template's folder (see :attr:`Template.folder`). A boot
    provider that finds a kernel by itself takes the command line alone, and adds it to its own.
    """

    path: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""


@attrs.frozen(kw_only=True)
class NicSpec:
    """A network card: of user mode, on a bridge, or in a libvirt network.

    ``source`` is the bridge's or network's name; user mode has none.
    """

    kind: Literal["user", "bridge", "network"] = "user"
    source: str | None = None
    model: str = "virtio"

    def __attrs_post_init__(self) -> None:
        if (self.kind == "user") != (self.source is None):
            need = "takes no source" if self.kind == "user" else "needs a source"
            raise InvalidRequest(f"nic of kind {self.kind!r} {need}")


MAX_DISKS = 26
"""Disks of a clone, the first and swap among them: ``vda`` to ``vdz``."""


@attrs.frozen(kw_only=True)
class DiskSpec:
    """A further disk of each clone, of ``size`` bytes: zeros, or a swap area."""

    size: Size
    content: Literal["empty", "swap"] = "empty"


@attrs.frozen(kw_only=True)
class DomainOptions:
    """What a template may say about the virtual machine beyond memory and processors.

    ``xml`` is a file with a jinja2 template that replaces the shipped domain XML; ``machine``,
    ``cpu`` and ``firmware`` are libvirt's machine type, CPU model (or ``host-passthrough``,
    ``host-model``) and ``efi`` or ``bios``. ``disk_bus`` is libvirt's, for all disks. ``type`` is
    Xen's kind of guest, None for the hypervisor's own choice; ``on_crash`` and ``on_reboot`` are
    libvirt's actions. ``autostart``: start it with the host.
    ``agent``: have a channel for the guest agent. ``devices`` is XML that is added to
    the domain's ``<devices>``; it may hold ``{{ name }}`` and the clone's other values.
    """

    type: Literal["pv", "pvh", "hvm"] | None = None
    machine: str | None = None
    cpu: str | None = None
    firmware: Literal["bios", "efi"] = "bios"
    disk_bus: str = "virtio"
    on_crash: Literal["destroy", "restart", "preserve"] = "destroy"
    on_reboot: Literal["destroy", "restart"] = "restart"
    autostart: bool = False
    agent: bool = False
    devices: str | None = None
    xml: Path | None = None


def _login_name(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", value):
        raise InvalidRequest(f"ssh user: not a user's name: {value!r}")


@attrs.frozen(kw_only=True)
class SshSpec:
    """How a template's clones let people in.

    ``key`` is a private key file of this machine, relative to the template's folder; None for the
    caller's own keys and agent.
    """

    user: str = attrs.field(default="root", validator=_login_name)
    port: int = attrs.field(
        default=22, validator=[attrs.validators.ge(1), attrs.validators.lt(65536)]
    )
    key: Path | None = None


@attrs.frozen(kw_only=True)
class IdentitySpec:
    """How a template's clones become different machines: its table ``identity``.

    Texts may hold ``{{ name }}`` and the other values of a clone.

    :param provider: name of an identity provider.
    :param authorized_keys: public keys that may log in, in OpenSSH's format, or files that hold
        them (absolute, or starting with ``~``); None for the caller's own, ``~/.ssh/id_*.pub``.
    :param addresses: for each card ``dhcp``, or an address with its prefix length; what is
        missing at the end is ``dhcp``.
    :param machine_id: 32 hexadecimal digits; None for the domain's UUID, which systemd takes by
        itself in a virtual machine whose image has none.
    :param user_data, network_config: files that are handed to the guest as they are; where their
        name ends in ``.j2``, as jinja2 templates.
    :param kernel_args: what the provider ``kernel-args`` adds to the command line.
    """

    provider: str = "none"
    hostname: str = "{{ name }}"
    authorized_keys: tuple[str, ...] | None = None
    addresses: tuple[str, ...] = ()
    gateway: str | None = None
    nameservers: tuple[str, ...] = ()
    machine_id: str | None = None
    user_data: Path | None = None
    network_config: Path | None = None
    kernel_args: str = "hostname={{ hostname }} systemd.hostname={{ hostname }}"


@attrs.frozen(kw_only=True)
class Template:
    """What is cloned.

    :param memory: bytes.
    :param disk_size: bytes of the first disk, at least the image's; None for the image's own.
    :param swap: bytes of a second disk that is a swap area; None for none.
    :param disks: further disks, which follow.
    :param boot: name of a boot provider.
    :param values: further values for placeholders, each a text that may hold placeholders itself.
    :param ready: what ``--wait`` waits for: ``running``, ``ip``, ``port:N``, ``ssh``, ``agent`` or
        ``console:REGEX``, where ``{{ name }}`` stands for the clone's name.
    :param folder: where the template's relative paths start: the folder of its file, or, where
        an image builder makes them, the folder that the builder filled.
    :param origin_file: the TOML file that the template was read from.
    """

    name: str = attrs.field(validator=lambda _i, _a, v: check_template(v) and None)
    description: str = ""
    hypervisors: tuple[str, ...] = ("kvm", "xen")
    boot: str = "disk"
    memory: Size = 512 * 1024**2
    vcpus: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    image: ImageSource
    disk_size: Size | None = None
    swap: Size | None = None
    disks: tuple[DiskSpec, ...] = ()
    kernel: KernelSpec | None = None
    nics: tuple[NicSpec, ...] = (NicSpec(),)
    domain: DomainOptions = DomainOptions()
    ssh: SshSpec = SshSpec()
    identity: IdentitySpec = IdentitySpec()
    values: Mapping[str, str | int] = attrs.field(factory=dict)
    ready: str = "running"
    folder: Path = Path()
    origin_file: Path | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.blanks) >= MAX_DISKS:
            raise InvalidRequest(f"disks: a clone has {MAX_DISKS} disks at most")

    @property
    def blanks(self) -> tuple[DiskSpec, ...]:
        """The disks beside the image's, in order: number 1, 2, …"""
        swap = () if self.swap is None else (DiskSpec(size=self.swap, content="swap"),)
        return (*swap, *self.disks)


# --- volumes ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Origin:
    """A template's image in a pool: what clones are made of. Read-only.

    :param size: virtual bytes. :param allocated: bytes that hold data.
    :param extents: number of extents on disk, None where the pool has no such thing.
    :param digest: ``sha256:…`` of the source that was imported, to tell whether to import again.
    """

    template: str
    pool: str
    size: int
    allocated: int
    digest: str
    extents: int | None = None


@attrs.frozen(kw_only=True)
class Volume:
    """A clone's disk, where the hypervisor finds it.

    :param name: the volume's name in its pool, ``CLONE-diskN``.
    :param path: absolute path on the host. :param format: the bytes' format, as libvirt names it.
    :param kind: ``file`` or ``block``, libvirt's disk type. :param size: virtual bytes.
    :param complete: False while its bytes aren't all there: a copy is under way, or was cut off.
        The same request completes it, deleting it takes it away.
    """

    name: str
    pool: str
    labels: Labels
    path: Path
    size: int
    format: Literal["raw", "qcow2"] = "raw"
    kind: Literal["file", "block"] = "file"
    complete: bool = True

    @property
    def disk(self) -> int:
        """Its number among the clone's disks, from 0."""
        return (split_volume(self.name) or ("", 0))[1]


Progress = Callable[[int, int], None]
"""Called with (done, total) in bytes; total is 0 where it isn't known. From any thread."""


@attrs.frozen(kw_only=True)
class Copying:
    """How bytes are copied, where a pool copies any.

    :param bandwidth: bytes a second at most that one call writes, None for as many as can be.
    :param verify: read what was written back, and compare checksums.
    :param progress: told of the bytes of this one volume.
    """

    bandwidth: int | None = None
    verify: bool = False
    progress: Progress = attrs.field(default=lambda _done, _total: None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.bandwidth is not None and self.bandwidth < 1:
            raise InvalidRequest(f"bandwidth must be positive, not {self.bandwidth}")


AS_IT_COMES = Copying()
"""Copy as fast as can be, and trust what was written."""


@attrs.frozen(kw_only=True)
class CloneRequest:
    """One volume to be made: a clone of an origin, or a blank one.

    :param disk: its number among the clone's disks, from 0.
    :param origin: what it is a clone of, in the way of ``mode``. None for a blank volume, which
        is zeros but for ``head`` at its start, and doesn't share anything in either mode.
    :param size: bytes, at least the origin's; None for the origin's own. A blank one needs it.
    :param copying: how its bytes are copied, if they are.
    """

    labels: Labels
    disk: int = 0
    origin: Origin | None = None
    mode: CloneMode = CloneMode.LINKED
    size: int | None = None
    head: bytes = attrs.field(default=b"", repr=False)
    copying: Copying = attrs.field(default=AS_IT_COMES, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.origin is None and (self.size or 0) < max(1, len(self.head)):
            raise InvalidRequest(f"{self.volume_name}: a blank disk needs a size")

    @property
    def volume_name(self) -> str:
        """Name of the volume in its pool, and the key of its outcomes."""
        return volume_name(self.labels.clone, self.disk)


@attrs.frozen(kw_only=True)
class Capacity:
    """What a pool holds, in bytes.

    :param volumes_free: how many more volumes fit, whatever their size; None where bytes are all
        that limits them.
    :param warnings: what people should know before it is too late (``metadata 83 % full``).
    """

    total: int
    free: int
    volumes_free: int | None = None
    warnings: tuple[str, ...] = ()


# --- domains ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class BootConfig:
    """What a domain boots: a kernel, what a boot loader on the host says, or its devices in order.

    :param kernel: a file of the host; the guest's own boot loader is not run. With ``initrd`` and
        ``cmdline``, absolute paths and text.
    :param devices: libvirt's boot devices, ``hd`` and ``network``, where there is no ``kernel``.
    :param bootloader: an executable of the host that the hypervisor runs at each start and each
        reboot to get kernel and initrd (Xen's way), absolute or one of its own programs' names;
        with ``bootloader_args``. ``cmdline`` is then added to what it says.
    :param on_reboot: what a reboot by the guest does: ``restart`` boots it again from what it has
        been given, ``destroy`` ends the domain, so that the next start asks the provider again.
    :param handover: the boot provider to be asked instead, as if the template named it.
    :param source: where it was found, for people: "entry 'Debian' of /boot/grub/grub.cfg".
    :param origins: where kernel and initrds come from, for people, in this order. Somebody who
        only wants to know (``BootRequest.dry_run``) gets these in place of files.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str | None = None
    devices: tuple[str, ...] = ("hd",)
    bootloader: Path | None = None
    bootloader_args: tuple[str, ...] = ()
    on_reboot: Literal["restart", "destroy"] = "restart"
    handover: str | None = None
    source: str = attrs.field(default="", eq=False)
    origins: tuple[str, ...] = attrs.field(default=(), eq=False)


@attrs.frozen(kw_only=True)
class Nic:
    """A network card of one clone: its specification and its address."""

    spec: NicSpec
    mac: str = attrs.field(converter=check_mac)


@attrs.frozen(kw_only=True)
class Interface:
    """How a clone's card is set up in the guest. ``address`` with prefix length; None for DHCP."""

    mac: str
    address: str | None = None


@attrs.frozen(kw_only=True)
class Identity:
    """Who a clone is, decided before anything of it exists: the same at each plan of it.

    :param machine_id: 32 hexadecimal digits, systemd's ``/etc/machine-id``.
    :param generation: another one each time that the clone is made anew.
    :param user: whom ``authorized_keys`` let in.
    """

    hostname: str
    machine_id: str
    generation: uuid.UUID
    uuid: uuid.UUID
    interfaces: tuple[Interface, ...] = ()
    gateway: str | None = None
    nameservers: tuple[str, ...] = ()
    user: str = "root"
    authorized_keys: tuple[str, ...] = ()

    @property
    def address(self) -> str | None:
        """The first address that is the clone's by plan, without prefix length; None with DHCP."""
        static = (card.address for card in self.interfaces if card.address is not None)
        return next((address.partition("/")[0] for address in static), None)


@attrs.frozen(kw_only=True)
class Seed:
    """What brings an identity into a guest: an image that it reads, words for its kernel."""

    image: Path | None = None
    cmdline: str = ""


@attrs.frozen(kw_only=True)
class DomainSpec:
    """All that a hypervisor needs to define one clone's domain. ``memory`` in bytes.

    :param seed: an image that the guest reads its identity from, as a further disk, read-only.
    :param values: the clone's own values, beside those that all clones have.
    """

    labels: Labels
    uuid: uuid.UUID
    memory: int
    vcpus: int
    boot: BootConfig
    volumes: tuple[Volume, ...]
    nics: tuple[Nic, ...]
    options: DomainOptions = DomainOptions()
    seed: Path | None = None
    values: Mapping[str, str | int] = attrs.field(factory=dict)

    @property
    def networks(self) -> tuple[str, ...]:
        """The network of each card, empty where it is on none."""
        specs = (nic.spec for nic in self.nics)
        return tuple(spec.source or "" if spec.kind == "network" else "" for spec in specs)

    @property
    def name(self) -> str:
        """The domain's name, which is the clone's."""
        return self.labels.clone


@attrs.frozen(kw_only=True)
class Domain:
    """A labelled domain as found on the host. ``state`` is never ALLOCATED or ORPHAN.

    ``memory`` in bytes: what it takes once it is started. ``networks`` names the network of each
    card, empty where it is on none.
    """

    name: str
    uuid: uuid.UUID
    labels: Labels
    state: State
    memory: int
    macs: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    disks: tuple[Path, ...] = ()


@attrs.frozen(kw_only=True)
class DomainInventory:
    """What a hypervisor holds: our domains, and what of the others must be kept clear of."""

    domains: tuple[Domain, ...]
    foreign_names: frozenset[str] = frozenset()
    foreign_macs: frozenset[str] = frozenset()


@attrs.frozen(kw_only=True)
class Network:
    """A network of the host that cards can be on by its name.

    :param ours: whether vmcloner made it.
    :param address: the host's own address on it, with prefix length.
    :param addresses: how many DHCP can give out; None where it isn't the network that does.
    :param leases: MAC addresses that hold one of them now.
    """

    name: str
    active: bool
    ours: bool = False
    address: str | None = None
    addresses: int | None = None
    leases: frozenset[str] = attrs.field(default=frozenset(), converter=frozenset)


def _ipv4_subnet(_instance: object, _attribute: object, value: str | None) -> None:
    try:
        if value is not None:
            ipaddress.IPv4Network(value)
    except ValueError as error:
        raise InvalidRequest(f"subnet: {error}", hint="like 192.168.150.0/24") from error


def _network_name(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,49}", value):
        raise InvalidRequest(f"not a network's name: {value!r}")


@attrs.frozen(kw_only=True)
class NetworkRequest:
    """Ask for a network of vmcloner's own with room for ``count`` guests.

    :param subnet: IPv4, None for one that is free.
    :param dry_run: change nothing, tell only what would be.
    """

    name: str = attrs.field(default="vmcloner", validator=_network_name)
    count: int = attrs.field(default=250, validator=attrs.validators.ge(1))
    subnet: str | None = attrs.field(default=None, validator=_ipv4_subnet)
    dry_run: bool = False


@attrs.frozen(kw_only=True)
class NetworkChange:
    """A network as it is now, or would be, and what that took; no steps where it was so before."""

    network: Network
    steps: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class HostResources:
    """What the host has for guests, in bytes.

    :param memory_free: what guests can get, with what a kernel could reclaim.
    :param memory_overhead: what a guest takes beside its own memory.
    :param memory_hint: where memory can't be overcommitted: what would give guests more of it.
    """

    memory_total: int
    memory_free: int
    cpus: int
    memory_overhead: int = 0
    memory_hint: str = ""


@attrs.frozen(kw_only=True)
class Clone:
    """A clone as people see it: the row of ``list``, and the parts that it was put together from.

    ``labels`` are the domain's, or its volume's while there is no domain.

    :param ip: the first address that it was found at.
    :param seeded: whether its identity is kept on the host.
    """

    labels: Labels
    state: State
    host: str
    volumes: tuple[Volume, ...] = ()
    domain: Domain | None = None
    ip: str | None = None
    seeded: bool = False

    @property
    def name(self) -> str:
        """``FLEET-INDEX``."""
        return self.labels.clone

    @property
    def fleet(self) -> str:
        """Name of its fleet."""
        return self.labels.fleet

    @property
    def index(self) -> int:
        """Its number in the fleet."""
        return self.labels.index

    @property
    def template(self) -> str:
        """Name of the template it was made from."""
        return self.labels.template

    @property
    def mac(self) -> str | None:
        """Address of its first network card."""
        return self.domain.macs[0] if self.domain is not None and self.domain.macs else None


@attrs.frozen(kw_only=True)
class Access:
    """How a clone is reached by ssh, and how it proves who it is.

    :param address: IPv4 or IPv6. :param key: a private key file, None for the caller's own.
    :param known_hosts: a file of sshd(8)'s format with the clone's host keys under its name.
    """

    name: str
    address: str
    user: str
    port: int
    known_hosts: Path
    key: Path | None = None


# --- results ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Outcome(Generic[T_co]):
    """What became of one member of a batch: a value, or an error.

    :param key: the name of the clone, domain or volume that the member was about.
    :param changed: False where the host already was as asked: nothing was done, so a roll-back
        has nothing to undo.
    """

    key: str
    value: T_co | None = None
    error: VmclonerError | None = None
    changed: bool = True

    @property
    def ok(self) -> bool:
        """Whether the member is now as asked."""
        return self.error is None

    def unwrap(self) -> T_co:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return cast(T_co, self.value)


class Status(enum.Enum):
    """Result of one check of the doctor."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@attrs.frozen(kw_only=True)
class Check:
    """One line of ``host check``: what was looked at, what was found, what mends it."""

    backend: str
    name: str
    status: Status
    detail: str = ""
    fix: str = ""


# --- hosts --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Host:
    """A machine that runs clones. There may be several; each driver is made for one.

    :param state: folder of vmcloner's own files on that host (console logs, built templates,
        what clones were started from).
    """

    name: str
    state: Path

    @property
    def consoles(self) -> Path:
        """Folder of the console logs, ``CLONE.log``."""
        return self.state / "console"

    @property
    def identities(self) -> Path:
        """Folder of what makes clones somebody: one folder per clone, host keys among it."""
        return self.state / "identity"

    @property
    def templates(self) -> Path:
        """Folder of what image builders made, one folder per template."""
        return self.state / "templates"

    @property
    def boots(self) -> Path:
        """Folder of what boot providers fetched for clones, one folder per clone."""
        return self.state / "boot"


_UUID_SPACE = uuid.UUID("5c7c0f3e-6f0a-5a52-9d7e-0d6a1b8a7f11")


def clone_uuid(host: str, fleet: str, index: int, template: str) -> uuid.UUID:
    """Return the UUID of a clone's domain: the same for the same clone, whoever asks."""
    return uuid.uuid5(_UUID_SPACE, f"{host}/{fleet}/{index}/{template}")


def clone_generation(clone: uuid.UUID, run: str) -> uuid.UUID:
    """Return the VM generation id: another run makes another machine of the same name."""
    return uuid.uuid5(clone, run)


def clone_mac(prefix: str, host: str, fleet: str, index: int, nic: int, attempt: int = 0) -> str:
    """Return a stable MAC address for a clone's card.

    24 bits collide at a few thousand clones, so a caller that knows the addresses in use calls
    again with the next ``attempt`` until it finds a free one.

    :param prefix: the first three octets, ``52:54:00`` (QEMU) or ``00:16:3e`` (Xen).
    """
    digest = hashlib.sha256(f"{host}/{fleet}/{index}/{nic}/{attempt}".encode()).digest()
    return check_mac(f"{prefix}:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}")
