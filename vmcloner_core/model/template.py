"""Templates, and the tables of their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model.host import network_key
from vmcloner_core.names import check_template
from vmcloner_core.units import Size

ImageFormat = Literal["raw", "qcow2"]
"""Formats of images that are imported as they are; others are recognized, and converted."""
IMAGE_SOURCES = ("builder", "path", "url", "captured")
"""The keys of a table ``image`` that say where it comes from."""


@attrs.frozen(kw_only=True)
class CapturedImage:
    """A template's image that was captured from a clone: it is in a pool, and nowhere else.

    :param template: the template that was captured; another one may extend it, and have its image.
    :param clone, run, created: of the clone's labels. :param at: when, UTC in ISO 8601.
    :param sealed: whether the clone's identity was removed from it.
    """

    template: str = attrs.field(validator=lambda _i, _a, v: check_template(v) and None)
    pool: str
    clone: str
    run: str
    created: str
    at: str
    sealed: bool


@attrs.frozen(kw_only=True)
class ImageSource:
    """Where a template's disk image comes from: exactly one of builder, path, url and captured.

    ``builder`` names an image builder plugin; ``options`` are its options. ``format`` is that of
    the image, unpacked; None for "by its suffix, otherwise raw". ``sha256`` (hexadecimal) is that
    of the file as it comes. ``checksums`` is the https URL of a file in which the publisher lists
    the image's checksum. A url needs one of these two. ``signature`` is the https URL of the
    OpenPGP signature of that file, unless it is in the file; ``keyring`` is a file with the keys
    that may sign it, relative to the template's file.
    """

    builder: str | None = None
    path: Path | None = None
    url: str | None = None
    captured: CapturedImage | None = None
    sha256: str | None = None
    checksums: str | None = None
    signature: str | None = None
    keyring: Path | None = None
    format: ImageFormat | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        given = [n for n in IMAGE_SOURCES if getattr(self, n) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                "image needs exactly one of builder, path, url and captured, not "
                + (" and ".join(given) or "none")
            )
        if self.options and self.builder is None:
            raise InvalidRequest("image options: only allowed with a builder")
        if self.checksums is not None:
            self._check_checksums(self.checksums)
        self._check_signature()
        for key in ("sha256", "format"):
            for other in ("builder", "captured"):
                if getattr(self, other) is not None and getattr(self, key) is not None:
                    raise InvalidRequest(f"image {key}: not allowed with {other}")
        if self.url is not None and not re.match(r"https?://", self.url):
            raise InvalidRequest(f"image url: not http or https: {self.url!r}")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise InvalidRequest("image sha256: not 64 hexadecimal digits")

    def _check_signature(self) -> None:
        for key in ("signature", "keyring"):
            if self.checksums is None and getattr(self, key) is not None:
                raise InvalidRequest(f"image {key}: only allowed with checksums")
        if self.signature is not None and not re.match(r"https://[^/]", self.signature):
            raise InvalidRequest(f"image signature: not https: {self.signature!r}")

    def _check_checksums(self, url: str) -> None:
        if self.url is None:
            raise InvalidRequest("image checksums: only allowed with a url")
        if self.sha256 is not None:
            raise InvalidRequest("image needs one of sha256 and checksums, not both")
        if not re.match(r"https://[^/]", url):
            raise InvalidRequest(f"image checksums: not https: {url!r}")


@attrs.frozen(kw_only=True)
class KernelSpec:
    """Direct kernel boot: files on the host, and a command line that may contain ``{{ name }}``.

    Relative paths are relative to the template's folder (see :attr:`Template.folder`). A boot
    provider that finds a kernel by itself uses only the command line, and adds it to its own.
    """

    path: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that are set, as ``kernel.KEY``."""
        return tuple(f"kernel.{key}" for key in ("path", "initrd", "cmdline") if getattr(self, key))


@attrs.frozen(kw_only=True)
class NicSpec:
    """A network card: with user-mode networking, on a bridge, or in a libvirt network.

    ``source`` is the bridge's or network's name; user mode has none. ``forward`` is the guest's
    TCP port (22 for ssh) that the host reaches by its loopback network, in user mode only.
    """

    kind: Literal["user", "bridge", "network"] = "user"
    source: str | None = None
    model: str = "virtio"
    forward: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.forward is not None and (self.kind != "user" or not 0 < self.forward < 65536):
            raise InvalidRequest(
                "nic: forward is a TCP port of the guest, 1 to 65535",
                hint='forward = 22 with kind = "user"; other cards are reached directly',
            )
        if (self.kind == "user") != (self.source is None):
            need = "takes no source" if self.kind == "user" else "needs a source"
            raise InvalidRequest(f"nic of kind {self.kind!r} {need}")

    @property
    def network(self) -> str:
        """Its network, as :attr:`Network.key`; empty in user mode."""
        return network_key(self.kind, self.source) if self.source is not None else ""


MAX_DISKS = 26
"""Disks of a clone, including the first and swap: ``vda`` to ``vdz``."""


@attrs.frozen(kw_only=True)
class DiskSpec:
    """An additional disk for each clone, of ``size`` bytes: zeros, or a swap area."""

    size: Size
    content: Literal["empty", "swap"] = "empty"


@attrs.frozen(kw_only=True)
class DomainOptions:
    """Options of the virtual machine other than memory and processors.

    ``xml`` is a file with a jinja2 template that replaces the shipped domain XML. ``machine`` is
    libvirt's machine type, ``cpu`` its CPU model (or ``host-passthrough``, ``host-model``).
    ``disk_bus`` is libvirt's, for all disks. ``type`` is the type of a Xen guest, None for the
    hypervisor's default. ``on_crash`` and ``on_reboot`` are libvirt's actions. ``autostart``: start
    it with the host. ``agent``: add a channel for the guest agent. ``graphics``: add a screen.
    ``devices`` is XML to add to the domain's ``<devices>``; it may contain ``{{ name }}`` and the
    clone's other values.
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
    graphics: Literal["vnc", "spice"] | None = None
    devices: str | None = None
    xml: Path | None = None


def _login_name(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", value):
        raise InvalidRequest(f"ssh user: not a user name: {value!r}")


@attrs.frozen(kw_only=True)
class SshSpec:
    """How to log in to a template's clones.

    ``key`` is a private key file on this machine, relative to the template's file; None for the
    caller's own keys and agent.
    """

    user: str = attrs.field(default="root", validator=_login_name)
    port: int = attrs.field(
        default=22, validator=[attrs.validators.ge(1), attrs.validators.lt(65536)]
    )
    key: Path | None = None


@attrs.frozen(kw_only=True)
class IdentitySpec:
    """How each clone of a template gets its identity: the table ``identity``.

    Texts may contain ``{{ name }}`` and the other values of a clone.

    :param provider: name of an identity provider.
    :param authorized_keys: public keys that may log in, in OpenSSH's format, or files with such
        keys (absolute, or starting with ``~``); None for the caller's own, ``~/.ssh/id_*.pub``.
    :param addresses: for each card ``dhcp``, or an address with its prefix length; cards without
        an entry use ``dhcp``.
    :param machine_id: 32 hexadecimal digits; None for the domain's UUID, which systemd adopts in
        a virtual machine whose image has none.
    :param user_data, network_config: files that are passed to the guest unchanged, or rendered as
        jinja2 templates if their name ends in ``.j2``.
    :param kernel_args: arguments that the provider ``kernel-args`` adds to the command line.
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

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that are set to other than their defaults, without ``provider``."""
        default = IdentitySpec()
        keys = (field.name for field in attrs.fields(IdentitySpec) if field.name != "provider")
        return tuple(key for key in keys if getattr(self, key) != getattr(default, key))


def _patterns(_instance: object, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for pattern in value:
        parts = pattern.split("/")
        if parts[0] or len(pattern) < 2 or ".." in parts or not pattern.isprintable():
            raise InvalidRequest(
                f"seal {attribute.name}: not an absolute path without '..': {pattern!r}"
            )


@attrs.frozen(kw_only=True)
class SealSpec:
    """What ``template capture`` does on a captured disk beside its own list: the table ``seal``.

    Each is a list of the guest's absolute paths, which may have the shell's ``*``, ``?`` and
    ``[…]``.

    :param remove: what is removed, folders with their contents.
    :param empty: files that are emptied, or folders with all files in them.
    :param keep: what is neither removed nor emptied, whatever else says so.
    """

    remove: tuple[str, ...] = attrs.field(default=(), validator=_patterns)
    empty: tuple[str, ...] = attrs.field(default=(), validator=_patterns)
    keep: tuple[str, ...] = attrs.field(default=(), validator=_patterns)


@attrs.frozen(kw_only=True)
class Template:
    """A template: what clones are created from.

    :param memory: bytes.
    :param disk_size: bytes of the first disk, at least the image's size; None for the image's size.
    :param swap: bytes of a second disk that is a swap area; None for no such disk.
    :param disks: the disks after these.
    :param boot: name of a boot provider.
    :param values: additional placeholders; their values may contain placeholders themselves.
    :param ready: what ``--wait`` waits for: ``running``, ``ip``, ``port:N``, ``ssh``,
        ``cloud-init``, ``agent`` or ``console:REGEX``, where ``{{ name }}`` stands for the clone's
        name. See :attr:`readiness`.
    :param folder: what the template's relative paths are relative to: the folder of its file, or
        the folder that an image builder filled.
    :param origin_file: the TOML file that the template was read from.
    """

    name: str = attrs.field(
        validator=lambda _i, _a, v: check_template(v) and None, metadata={"key": False}
    )
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
    seal: SealSpec = SealSpec()
    values: Mapping[str, str | int] = attrs.field(factory=dict)
    ready: str = "running"
    folder: Path = attrs.field(default=Path(), metadata={"key": False})
    origin_file: Path | None = attrs.field(default=None, metadata={"key": False})

    def __attrs_post_init__(self) -> None:
        if len(self.blanks) >= MAX_DISKS:
            raise InvalidRequest(f"disks: a clone can have at most {MAX_DISKS} disks")

    @property
    def readiness(self) -> str:
        """What to wait for by default: not less than the end of cloud-init if it has user-data."""
        identity = self.identity
        runs = identity.provider == "cloud-init" and identity.user_data is not None
        return "cloud-init" if runs and self.ready in ("running", "ssh") else self.ready

    @property
    def networks(self) -> frozenset[str]:
        """The networks of its cards, as :attr:`Network.key`."""
        return frozenset(nic.network for nic in self.nics if nic.network)

    @property
    def blanks(self) -> tuple[DiskSpec, ...]:
        """All disks but the first, in order: number 1, 2, …"""
        swap = () if self.swap is None else (DiskSpec(size=self.swap, content="swap"),)
        return (*swap, *self.disks)
