"""From a network card's address to a kernel, its initrds and its command line."""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Iterator
from typing import BinaryIO

import attrs

from vmcloner_pxe import cpio, ipxe, pxelinux
from vmcloner_pxe.dhcp import TRIES, Client, Lease
from vmcloner_pxe.errors import NetbootError, shown
from vmcloner_pxe.fetching import Fetcher, first_found
from vmcloner_pxe.location import Base, Location, base_of, beside
from vmcloner_syslinux.choice import Choice, Kernel, choose
from vmcloner_syslinux.config import ConfigError, parse

_IPXE_BINARY = re.compile(r"(?:.*/)?(?:undionly|snponly|ipxe)[^/]*\.(?:k?k?pxe|lkrn|efi|0)")
_SCRIPT = re.compile(r"https?://.*(?<!\.0)|.*\.ipxe", re.IGNORECASE)
_HEAD = 1024


@attrs.frozen(kw_only=True)
class Guest:
    """Who boots. ``mac`` in lower case with colons; ``machine`` is its UUID, where known."""

    mac: str
    machine: uuid.UUID | None = None


@attrs.frozen(kw_only=True)
class Found:
    """What a guest boots, by name: nothing is fetched yet but the configuration.

    :param config: the file that says so. :param label: the name that it has there.
    :param kernel: None where the guest is to boot its own disk.
    :param archived: for each initrd the path that it is to have in an archive, see ``Kernel``.
    """

    lease: Lease
    config: Location
    label: str
    kernel: Location | None = None
    initrds: tuple[Location, ...] = ()
    archived: tuple[str, ...] = ()
    arguments: str = ""
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Resolver:
    """Does what a network card's boot ROM and PXELINUX do. Thread-safe.

    :param tries: seconds that each DHCP message is waited for.
    """

    fetcher: Fetcher
    tries: tuple[float, ...] = TRIES

    def leases(self, guest: Guest, where: socket.socket) -> Iterator[Lease]:
        """Yield what a guest is given, of which the last is what counts.

        That is one lease, or two: where the first's boot file is iPXE itself, that one would ask
        again, and be told what to do.

        :param where: a packet socket in the guest's network.
        :raises NetbootError: as :class:`Client` does.
        """
        for as_ipxe in (False, True):
            client = Client(
                where,
                guest.mac,
                machine=guest.machine,
                ipxe=as_ipxe,
                deadline=self.fetcher.deadline,
                tries=self.tries,
            )
            lease = client.lease()
            yield lease
            if not _IPXE_BINARY.fullmatch(lease.boot_file):
                break

    def find(self, guest: Guest, lease: Lease) -> Found:
        """Return what a guest with that lease boots.

        :raises NetbootError: the server doesn't say, or says it in a way that can't be read.
        """
        if lease.silent_proxy is not None and not lease.config_file:
            raise NetbootError(
                f"the proxyDHCP server {lease.silent_proxy} names no boot file in its offer, and"
                " isn't asked any further",
                hint="with dnsmasq: dhcp-boot=pxelinux.0 beside pxe-service",
            )
        if not (lease.boot_file or lease.config_file):
            raise NetbootError(
                f"the DHCP server {lease.server} names no boot file",
                hint="it needs option 67, with dnsmasq: dhcp-boot=pxelinux.0",
            )
        if lease.config_file is None and _SCRIPT.fullmatch(lease.boot_file):
            return self._by_script(guest, lease)
        return self._by_configuration(guest, lease)

    def _fetcher(self, lease: Lease) -> Fetcher:
        """Return what fetches for a guest: this host may be its boot server, if DHCP says so."""
        named = frozenset({str(lease.server), lease.boot_server})
        return attrs.evolve(self.fetcher, reach=attrs.evolve(self.fetcher.reach, named=named))

    def _by_configuration(self, guest: Guest, lease: Lease) -> Found:
        fetcher = self._fetcher(lease)
        base = base_of(lease.boot_server, lease.boot_file, lease.path_prefix)
        names = pxelinux.search_names(guest.mac, lease.address, guest.machine)
        if lease.config_file is not None:
            names = (lease.config_file, *names)
        found = first_found(fetcher, [base.locate(name) for name in names])
        if found is None:
            raise NetbootError(
                f"{base.locate(names[-1])}: not there, nor any of the other {len(names) - 1} names"
                " that a configuration could have"
            )
        where, text = found
        try:
            config = parse(text, lambda name: fetcher.text_if_any(base.locate(name)))
            choice = choose(config)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error
        return _found(guest, lease, where, base, choice, config.warnings)

    def _by_script(self, guest: Guest, lease: Lease) -> Found:
        fetcher = self._fetcher(lease)
        where = Base(server=lease.boot_server).locate(lease.boot_file)
        base = beside(where)
        choice = ipxe.parse(
            fetcher.text(where),
            _variables(guest, lease),
            lambda name: fetcher.text_if_any(base.locate(name)),
        )
        return _found(guest, lease, where, base, choice, [])

    def fetch(self, found: Found) -> tuple[BinaryIO, ...]:
        """Return a kernel and its initrds as open files; the caller closes them.

        :raises NetbootError: one can't be had, the kernel is none, or the initrds are too large.
        """
        assert found.kernel is not None  # noqa: S101 - the caller's to see
        fetcher = self._fetcher(found.lease)
        files: list[BinaryIO] = []
        size = 0
        try:
            paths = ("", *(found.archived or [""] * len(found.initrds)))
            for location, path in zip((found.kernel, *found.initrds), paths, strict=True):
                files.append(fetcher.file(location))
                if len(files) == 1:
                    check_kernel(files[0], str(location))
                    continue
                if path:
                    files.append(cpio.archive(files.pop(), path))
                size += os.fstat(files[-1].fileno()).st_size
                if size > fetcher.max_size:
                    raise NetbootError(
                        f"{location}: with it, the initrds are larger than"
                        f" {fetcher.max_size} bytes",
                        hint="raise --max-size",
                    )
        except BaseException:
            for file in files:
                file.close()
            raise
        return tuple(files)


def check_kernel(stream: BinaryIO, name: str) -> None:
    """Refuse what is no kernel, by its magic number; leaves the stream at its start.

    Linux's bzImage (Documentation/arch/x86/boot.rst) and ELF are kernels.
    """
    stream.seek(0)
    head = stream.read(_HEAD)
    stream.seek(0)
    if head[0x202:0x206] != b"HdrS" and not head.startswith(b"\x7fELF"):
        raise NetbootError(f"{shown(name)}: neither a bzImage nor ELF: no kernel")


def _found(
    guest: Guest, lease: Lease, where: Location, base: Base, choice: Choice, warnings: list[str]
) -> Found:
    if not isinstance(choice, Kernel):
        return Found(lease=lease, config=where, label=choice.label, warnings=tuple(warnings))
    appended = _system(choice.sysappend, guest, lease)
    if unknown := pxelinux.unknown_bits(choice.sysappend):
        warnings = [*warnings, f"SYSAPPEND: nothing is appended for the bits {unknown:#x}"]
    return Found(
        lease=lease,
        config=where,
        label=choice.label,
        kernel=base.locate(choice.kernel),
        initrds=tuple(base.locate(name) for name in choice.initrds),
        archived=choice.archived,
        arguments=" ".join(filter(None, [choice.arguments, *appended])),
        warnings=tuple(warnings),
    )


def _system(bits: int, guest: Guest, lease: Lease) -> list[str]:
    """Return what SYSAPPEND adds to a command line."""
    words = []
    if bits & pxelinux.IP:
        numbers = (lease.address, lease.boot_server, lease.router or "", lease.netmask or "")
        words.append("ip=" + ":".join(str(number) for number in numbers))
    if bits & pxelinux.BOOTIF:
        words.append(f"BOOTIF=01-{guest.mac.replace(':', '-')}")
    if bits & pxelinux.SYSUUID and guest.machine is not None:
        words.append(f"SYSUUID={guest.machine}")
    return words


def _variables(guest: Guest, lease: Lease) -> dict[str, str]:
    """Return what an iPXE script may name of the guest (https://ipxe.org/cfg)."""
    values = {
        "mac": guest.mac,
        "ip": str(lease.address),
        "next-server": lease.boot_server,
        "filename": lease.boot_file,
        "gateway": str(lease.router or ""),
        "netmask": str(lease.netmask or ""),
        "dhcp-server": str(lease.server),
        "dns": str(lease.dns or ""),
        "hostname": lease.host_name,
        "domain": lease.domain,
        "platform": "pcbios",
        "buildarch": "i386",
        "netX": "net0",
        "ifname": "net0",
    }
    if guest.machine is not None:
        values["uuid"] = str(guest.machine)
    return values
