"""Bridges for clones without libvirt: NAT by nftables(8), addresses by dnsmasq(8).

For hosts whose libvirt has no networks. A bridge has its label in its alias (ip-link(8)). Nothing
is persistent: after a reboot of the host it is made again.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import (
    BackendError,
    Conflict,
    HostCommandError,
    InvalidRequest,
    WrongState,
)
from vmcloner_core.model import Host, Network, NetworkChange, NetworkRequest
from vmcloner_core.process import CommandRunner
from vmcloner_core.trusted_files import make_folder
from vmcloner_libvirt import iproute, subnets, whereabouts

LABEL = "vmcloner network 1"
TOOLS = {"ip": "iproute2", "nft": "nftables", "dnsmasq": "dnsmasq-base"}
_STOPS_WITHIN = 10.0
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,14}")
_RULES = """\
add table ip {table}
delete table ip {table}
table ip {table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        ip saddr {subnet} ip daddr != {subnet} masquerade comment "{mark}"
    }}
    chain forward {{
        type filter hook forward priority filter;
        iifname "{bridge}" accept
        oifname "{bridge}" ct state established,related accept
        oifname "{bridge}" reject
    }}
}}
"""


@attrs.frozen(kw_only=True)
class _Bridge:
    """The bridge as the kernel has it; ``address`` is from the label."""

    ours: bool
    address: ipaddress.IPv4Interface | None = None
    lab: str | None = None
    ready: bool = False
    ports: int = 0


class Bridges:
    """Bridges of vmcloner's own on one host. Thread-safe."""

    def __init__(self, runner: CommandRunner, host: Host) -> None:
        self._runner = runner
        self._host = host

    def prepare(self, request: NetworkRequest) -> NetworkChange:
        """Make or complete a bridge of ours, for ``request.count`` guests.

        :raises Conflict: an interface of that name isn't ours, or the subnet is taken.
        :raises WrongState: it would have to be changed while guests are on it.
        :raises BackendError: a program is missing.
        """
        _check(self._runner, request)
        found = _find(self._runner, request.name)
        held = None if found is None or found.address is None else found.address.network
        fits = held is not None and subnets.room(held.prefixlen) >= request.count
        if held is None or not fits or subnets.Subnet(request.subnet or str(held)) != held:
            _refuse_guests(found, request.name, "can't get another subnet")
            taken = [subnet for subnet in subnets.routed(self._runner) if subnet != held]
            held = subnets.free(request, taken)
        lab = found.lab if found is not None and found.address is not None else request.lab
        work = _Work(self._runner, self._host, request.name, held, lab)
        missing = work.missing(found)
        if not request.dry_run:
            for make in missing.values():
                make()
        return NetworkChange(
            network=subnets.future(request.name, "bridge", held), steps=tuple(missing)
        )

    def remove(self, request: NetworkRequest) -> NetworkChange:
        """Remove a bridge of ours, its rules and its DHCP server; forwarding stays on.

        :raises Conflict: it isn't ours. :raises WrongState: guests are on it.
        """
        _check(self._runner, request)
        found = _find(self._runner, request.name)
        _refuse_guests(found, request.name, "can't be removed")
        work = _Work(self._runner, self._host, request.name, subnets.Subnet("0.0.0.0/24"))
        there = {
            "dhcp": work.server() is not None,
            "nat": bool(work.rules()),
            "bridge": found is not None,
        }
        if not request.dry_run:
            work.clear()
        gone = Network(name=request.name, active=False)
        return NetworkChange(
            network=gone, steps=tuple(step for step, is_so in there.items() if is_so)
        )

    def inspect(self) -> tuple[Network, ...]:
        """Return our bridges, with the MAC addresses that hold leases."""
        if self._runner.which("ip") is None:
            return ()
        found = []
        for link in iproute.show(self._runner, "link", "show", "type", "bridge"):
            name, (address, lab) = link["ifname"], _labelled(link)
            if address is not None:
                file = _folder(self._host) / f"{name}.leases"
                network = Network(
                    name=name,
                    kind="bridge",
                    active=_is_up(link),
                    ours=True,
                    address=str(address),
                    addresses=subnets.room(address.network.prefixlen),
                    leases={mac for _expiry, mac, _address in _leases(file)},
                    lab=lab,
                )
                found.append(network)
        return tuple(found)

    def leased(self) -> dict[str, tuple[str, ...]]:
        """Return the leased addresses by MAC, the newest first."""
        given: dict[str, list[tuple[int, str]]] = {}
        for file in _folder(self._host).glob("*.leases"):
            for expiry, mac, address in _leases(file):
                given.setdefault(mac, []).append((expiry, address))
        return whereabouts.newest_first(given)


def _labelled(link: dict[str, Any]) -> tuple[ipaddress.IPv4Interface | None, str | None]:
    """Return the address and the lab in our label; (None, None) if the alias isn't ours."""
    label = re.fullmatch(rf"{LABEL}(?: lab=(\S+))? (\S+)", str(link.get("ifalias", "")))
    with contextlib.suppress(ValueError):
        if label is not None:
            return ipaddress.IPv4Interface(label[2]), label[1]
    return None, None


def _leases(file: Path) -> list[tuple[int, str, str]]:
    """Return (expiry, MAC, address) of each valid lease in dnsmasq's file."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return []
    entries = [[*line.split(), "", "", ""] for line in lines]
    held = [(e, mac.lower(), ip) for e, mac, ip, *_ in entries if e.isdecimal() and ip]
    return [(int(e), mac, ip) for e, mac, ip in held if int(e) > time.time()]


@attrs.frozen
class _Work:
    """The parts of one bridge: which are missing, and how to make them."""

    runner: CommandRunner
    host: Host
    name: str
    subnet: subnets.Subnet
    lab: str | None = None

    @property
    def address(self) -> ipaddress.IPv4Interface:
        """The host's address on the bridge."""
        return ipaddress.IPv4Interface(f"{self.subnet[1]}/{self.subnet.prefixlen}")

    def missing(self, found: _Bridge | None) -> dict[str, Callable[[], None]]:
        """Return a function that makes each missing or wrong part, by its name, in order."""
        stands = found is not None and found.ready and found.address == self.address
        parts: dict[str, tuple[bool, Callable[[], None]]] = {
            "bridge": (stands, lambda: self._make_bridge(found)),
            "forwarding": (_FORWARDING.read_text().strip() == "1", self._forward),
            "nat": (self._mark in self.rules(), self._make_rules),
            # dnsmasq is bound to the bridge that existed when it started.
            "dhcp": (stands and self._serves(), self._serve),
        }
        return {name: make for name, (done, make) in parts.items() if not done}

    # --- the bridge ---------------------------------------------------------------------------

    def _make_bridge(self, found: _Bridge | None) -> None:
        if found is not None and found.address != self.address:
            self._ip("link", "delete", "dev", self.name, "type", "bridge")
            found = None
        if found is None:
            self._ip("link", "add", "name", self.name, "type", "bridge")
        lab = "" if self.lab is None else f"lab={self.lab} "
        self._ip("link", "set", "dev", self.name, "alias", f"{LABEL} {lab}{self.address}")
        self._ip("address", "replace", str(self.address), "dev", self.name)
        self._ip("link", "set", "dev", self.name, "up")

    def _ip(self, *words: str) -> None:
        self.runner.run(["ip", *words])

    def _forward(self) -> None:
        _FORWARDING.write_text("1\n")

    # --- rules --------------------------------------------------------------------------------

    @property
    def _table(self) -> str:
        return f"vmcloner.{self.name}"

    @property
    def _mark(self) -> str:
        return f"vmcloner {self.subnet}"

    def rules(self) -> str:
        """Return the rules as text, empty if there are none."""
        try:
            listed = self.runner.run(["nft", "list", "table", "ip", self._table])
        except HostCommandError:
            return ""
        return listed.stdout.decode(errors="replace")

    def _make_rules(self) -> None:
        text = _RULES.format(
            table=self._table, bridge=self.name, subnet=self.subnet, mark=self._mark
        )
        self.runner.run(["nft", "-f", "-"], input=text.encode())  # atomic

    # --- addresses ----------------------------------------------------------------------------

    def _file(self, suffix: str) -> Path:
        return _folder(self.host) / f"{self.name}.{suffix}"

    def _dnsmasq(self) -> list[str]:
        subnet = self.subnet
        first, last = subnets.span(subnet)
        return [
            *("dnsmasq", "--conf-file=/dev/null", f"--pid-file={self._file('pid')}"),
            *(f"--interface={self.name}", "--except-interface=lo", "--bind-interfaces"),
            f"--dhcp-range={first},{last},{subnet.netmask},{subnets.LEASE_MINUTES}m",
            *(f"--dhcp-lease-max={subnets.room(subnet.prefixlen)}", "--dhcp-authoritative"),
            f"--dhcp-leasefile={self._file('leases')}",
            *(f"--domain={subnets.DOMAIN}", f"--local=/{subnets.DOMAIN}/", "--expand-hosts"),
        ]

    def server(self) -> tuple[int, list[str]] | None:
        """Return PID and command line of the running DHCP server, None if there is none."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._file("pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
            if f"--pid-file={self._file('pid')}" in words:  # else the PID was reused
                return pid, words
        return None

    def _serves(self) -> bool:
        server = self.server()
        return server is not None and server[1] == self._dnsmasq()

    def _serve(self) -> None:
        self._stop_server()
        make_folder(_folder(self.host))
        self.runner.run(self._dnsmasq())

    def _stop_server(self) -> None:
        deadline = time.monotonic() + _STOPS_WITHIN
        while (server := self.server()) is not None:  # its sockets block the next one
            if time.monotonic() > deadline:
                raise HostCommandError(f"{self.name}: dnsmasq (process {server[0]}) didn't end")
            with contextlib.suppress(ProcessLookupError):
                os.kill(server[0], signal.SIGTERM)
            time.sleep(0.05)

    def clear(self) -> None:
        self._stop_server()
        if self.rules():
            self.runner.run(["nft", "delete", "table", "ip", self._table])
        if _find(self.runner, self.name) is not None:
            self._ip("link", "delete", "dev", self.name, "type", "bridge")
        for suffix in ("pid", "leases"):
            self._file(suffix).unlink(missing_ok=True)


def _folder(host: Host) -> Path:
    return host.state / "networks"


def _check(runner: CommandRunner, request: NetworkRequest) -> None:
    if not _NAME.fullmatch(request.name):
        raise InvalidRequest(
            f"not a valid bridge name: {request.name!r}",
            hint="use a letter, then up to 14 letters, digits, dots and underscores",
        )
    for tool, package in TOOLS.items():
        if runner.which(tool) is None:
            raise BackendError(f"{tool} is not installed", hint=f"apt-get install {package}")


def _refuse_guests(found: _Bridge | None, name: str, why: str) -> None:
    if found is not None and not found.ours:
        raise Conflict(
            f"interface {name!r} exists and isn't vmcloner's",
            hint="choose another name by --name; it is left unchanged",
        )
    if found is not None and found.ports:
        raise WrongState(
            f"bridge {name!r} {why}: guests are on it (ports: {found.ports})",
            hint="stop its guests first",
        )


def _find(runner: CommandRunner, name: str) -> _Bridge | None:
    links = iproute.show(runner, "link", "show")
    link = next((link for link in links if link.get("ifname") == name), None)
    if link is None:
        return None
    ports = sum(other.get("master") == name for other in links)
    address, lab = _labelled(link)
    here = [a for entry in iproute.show(runner, "-4", "address", "show", "dev", name)
            for a in entry.get("addr_info", ())]  # fmt: skip
    if address is not None:
        on_it = str(address) in {f"{a.get('local')}/{a.get('prefixlen')}" for a in here}
        ready = on_it and _is_up(link)
        return _Bridge(ours=True, address=address, lab=lab, ready=ready, ports=ports)
    # A run that was killed after its first step leaves a bare bridge.
    bare = not (link.get("ifalias") or here or ports or _is_up(link))
    return _Bridge(ours=bare and _is_bridge(runner, name), ports=ports)


def _is_up(link: dict[str, Any]) -> bool:
    return "UP" in link.get("flags", ())


def _is_bridge(runner: CommandRunner, name: str) -> bool:
    return any(
        b.get("ifname") == name for b in iproute.show(runner, "link", "show", "type", "bridge")
    )
