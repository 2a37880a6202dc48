"""What is cloned: a template, and the tables of its file."""

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


@attrs.frozen(kw_only=True)
class ImageSource:
    """Where a template's disk image comes from: exactly one of builder, path and url.

    ``builder`` names an image builder plugin. ``format`` is ``raw``, ``qcow2`` or None for "by
    its suffix, else raw". ``options`` are the builder's. ``sha256`` is required with a url,
    hexadecimal; ``upstream`` is for people.
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

    @property
    def network(self) -> str:
        """What it is on, as :attr:`Network.key`; empty in user mode."""
        return network_key(self.kind, self.source) if self.source is not None else ""


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

    ``key`` is a private key file of this machine, relative to the file that names it; None for the
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
    values: Mapping[str, str | int] = attrs.field(factory=dict)
    ready: str = "running"
    folder: Path = attrs.field(default=Path(), metadata={"key": False})
    origin_file: Path | None = attrs.field(default=None, metadata={"key": False})

    def __attrs_post_init__(self) -> None:
        if len(self.blanks) >= MAX_DISKS:
            raise InvalidRequest(f"disks: a clone has {MAX_DISKS} disks at most")

    @property
    def blanks(self) -> tuple[DiskSpec, ...]:
        """The disks beside the image's, in order: number 1, 2, …"""
        swap = () if self.swap is None else (DiskSpec(size=self.swap, content="swap"),)
        return (*swap, *self.disks)
