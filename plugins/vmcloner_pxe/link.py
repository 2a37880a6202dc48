"""Where a guest's DHCP goes out: on an interface itself, or through a port of a bridge.

A frame that is sent on a bridge reaches what is plugged into it, but not this host: a DHCP server
that runs here, as libvirt's networks have one, would never hear it. So on a bridge a port is
plugged in for the time: a veth pair (veth(4)) whose far end is in a network namespace of its own
(network_namespaces(7)). Nothing refers to that namespace but open files, so however this process
ends, kill -9 included, the kernel removes namespace, pair and port.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import attrs

from vmcloner_pxe.dhcp import open_socket
from vmcloner_pxe.errors import NetbootError, reason

MAX_NAME = 15
"""Bytes of an interface's name (IFNAMSIZ, linux/if.h, less the final NUL)."""
FAR = "eth0"
_NEWNET = 0x40000000  # CLONE_NEWNET, linux/sched.h
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IP_TIMEOUT = 20.0
_SYS_NET = Path("/sys/class/net")


@attrs.frozen(kw_only=True)
class Link:
    """Packet sockets in the guests' network, one for each guest.

    :param namespace: descriptor of the network namespace that they are in, None for this one.
    """

    sockets: tuple[socket.socket, ...]
    namespace: int | None = None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in that namespace: what is opened, and who is forked, stays there."""
        if self.namespace is None:
            yield
            return
        with _namespace_kept() as home:
            _set_namespace(self.namespace)
            try:
                yield
            finally:
                _set_namespace(home)

    def configure(self, address: IPv4Address, prefix: int, router: IPv4Address | None) -> None:
        """Give the far end its address, so that programs in the namespace can use it."""
        with self.entered():
            _ip("address", "add", f"{address}/{prefix}", "dev", FAR)
            if router is not None:
                _ip("route", "add", "default", "via", str(router))


@contextlib.contextmanager
def attached(interface: str, count: int, *, mode: str, mac: str | None = None) -> Iterator[Link]:
    """Open ``count`` packet sockets that reach what an interface leads to; needs root.

    :param mode: ``raw`` on the interface itself; ``port`` on a port of the bridge; ``auto`` is
        ``port`` where that can be.
    :param mac: the address of the port's far end, None for one made up.
    :raises NetbootError: names the interface and the reason.
    """
    if not _exists(interface):
        raise NetbootError(f"there is no interface {interface[:40]!r} here", hint="ip -brief link")
    if mode == "auto":
        mode = "port" if _takes_ports(interface) else "raw"
    if mode == "port" and not _is_bridge(interface):
        raise NetbootError(f"{interface} is not a bridge, and only a bridge takes a port")
    try:
        with contextlib.ExitStack() as stack:
            namespace = stack.enter_context(_port(interface, mac)) if mode == "port" else None
            link = Link(sockets=(), namespace=namespace)
            with link.entered():
                on = interface if namespace is None else FAR
                sockets = tuple(stack.enter_context(open_socket(on)) for _ in range(count))
            yield attrs.evolve(link, sockets=sockets)
    except PermissionError as error:
        raise NetbootError(f"{interface}: {reason(error)}", hint="run it as root") from error
    except OSError as error:
        raise NetbootError(f"{interface}: {reason(error)}") from error


@contextlib.contextmanager
def _port(bridge: str, mac: str | None) -> Iterator[int]:
    """Plug a veth pair into a bridge; give its far end's namespace."""
    near = f"pxe{secrets.token_hex(5)}"
    mtu = (_SYS_NET / bridge / "mtu").read_text().strip()  # a smaller one would lower the bridge's
    with contextlib.ExitStack() as stack:
        with _namespace_kept() as home:
            _check(_libc().unshare(_NEWNET))
            try:
                space = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, space)
                # A bridge takes the lowest of its ports' addresses: this one must not be it.
                _ip(
                    *("link", "add", FAR, *(("address", mac) if mac else ()), "mtu", mtu),
                    *("type", "veth", "peer", "name", near, "mtu", mtu),
                    *("address", f"fe:ff:ff:{_tail()}"),
                    *("netns", f"/proc/{os.getpid()}/fd/{home}"),
                )
                _ip("link", "set", "lo", "up")
                _ip("link", "set", FAR, "up")
            finally:
                _set_namespace(home)
        _ip("link", "set", near, "master", bridge, "up")
        yield space


def _tail() -> str:
    return ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def _exists(interface: str) -> bool:
    valid = 0 < len(interface.encode()) <= MAX_NAME and not {"/", "\0"} & set(interface)
    return valid and interface not in (".", "..") and (_SYS_NET / interface).exists()


def _is_bridge(interface: str) -> bool:
    return (_SYS_NET / interface / "bridge").is_dir()


def _takes_ports(interface: str) -> bool:
    """Tell whether a port of this bridge would work at once: not where STP looks around first."""
    settings = _SYS_NET / interface / "bridge"
    try:
        stp = (settings / "stp_state").read_text().strip() != "0"
        delay = (settings / "forward_delay").read_text().strip() != "0"
    except OSError:
        return False
    return not (stp and delay) and shutil.which("ip", path=_PATH) is not None


def _ip(*arguments: str) -> None:
    """Run iproute2's ``ip`` where this process is."""
    argv: Sequence[str] = ["ip", *arguments]
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_IP_TIMEOUT,
            env={"PATH": _PATH, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise NetbootError("ip: not installed", hint="apt install iproute2") from error
    except subprocess.TimeoutExpired as error:
        raise NetbootError(f"ip {arguments[0]}: no answer within {_IP_TIMEOUT:g} s") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise NetbootError(f"ip {' '.join(arguments[:3])}: {lines[-1][:200]}")


# --- namespaces ---------------------------------------------------------------------------------


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def _namespace_kept() -> Iterator[int]:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _set_namespace(fd: int) -> None:
    _check(_libc().setns(fd, _NEWNET))
