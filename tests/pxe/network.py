"""A network of the tests' own: namespaces joined by a bridge, with real servers in them.

    host    where pypxeboot runs: the bridge br0, with 10.77.0.9; a boot server of its own
    server  dnsmasq, DHCP and TFTP, 10.77.0.1
    other   atftpd (windows), a web server and a hostile TFTP server, 10.77.0.2-4
    proxy   a proxyDHCP server, 10.77.0.5

Nothing of it is joined with any network of the machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PYPXEBOOT = Path(sys.executable).with_name("pypxeboot")
HOST = "10.77.0.9"
ATFTPD, WEB, HOSTILE, PROXY = "10.77.0.2", "10.77.0.3", "10.77.0.4", "10.77.0.5"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def bzimage(size: int, seed: int = 0) -> bytes:
    """Bytes that pass for a kernel."""
    content = bytearray((b"%08x" % seed) * (size // 8 + 1))[:size]
    content[0x202:0x206] = b"HdrS"
    return bytes(content)


class Network:
    """The namespaces and what runs in them.

    :param bridge: the bridge's name. With ``rooted`` it is in the machine's own namespace, where
        libvirt finds it, and has an address of 198.18.77.0/24 (RFC 2544: nobody's).
    """

    def __init__(self, folder: Path, *, bridge: str = "br0", rooted: bool = False) -> None:
        self.folder, self.bridge, self.rooted = folder, bridge, rooted
        self.subnet = "198.18.77" if rooted else "10.77.0"
        # One of each kind may be up at once.
        self.tag = f"vmcpxe{os.getpid() % 100000}{'r' if rooted else ''}"
        self.tftp = folder / "tftp"
        self.tftp.mkdir()
        (self.tftp / "pxelinux.cfg").mkdir()
        (self.tftp / "pxelinux.0").write_bytes(b"never run")
        self.processes: list[subprocess.Popen[bytes]] = []

    def namespace(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def up(self) -> None:
        for name in self.names:
            ip("netns", "add", self.namespace(name))
            ip("-n", self.namespace(name), "link", "set", "lo", "up")
        ip(*self.host, "link", "add", self.bridge, "type", "bridge")
        ip(*self.host, "address", "add", f"{self.subnet}.9/24", "dev", self.bridge)
        ip(*self.host, "link", "set", self.bridge, "up")
        self.plug("server", f"{self.subnet}.1")
        if not self.rooted:
            self.plug("other", ATFTPD, WEB, HOSTILE)
            self.plug("proxy", PROXY)

    @property
    def names(self) -> tuple[str, ...]:
        return ("server",) if self.rooted else ("host", "server", "other", "proxy")

    @property
    def host(self) -> tuple[str, ...]:
        """Options by which ``ip`` works where the bridge is."""
        return () if self.rooted else ("-n", self.namespace("host"))

    def plug(self, name: str, *addresses: str) -> None:
        space = self.namespace(name)
        near = f"p{secrets.token_hex(4)}"
        where = str(os.getpid()) if self.rooted else self.namespace("host")
        ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", near, "netns", where)
        ip(*self.host, "link", "set", near, "master", self.bridge, "up")
        for address in addresses:
            ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")

    def down(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait(10)
        for words in [
            *(["netns", "delete", self.namespace(name)] for name in self.names),
            *([["link", "delete", self.bridge]] if self.rooted else []),
        ]:
            subprocess.run(["ip", *words], check=False, capture_output=True)

    def inside(self, name: str, argv: Sequence[str | Path]) -> list[str]:
        """Return what runs a command in a namespace, with its /sys."""
        return ["ip", "netns", "exec", self.namespace(name), *map(str, argv)]

    def spawn(self, name: str, argv: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        log = self.folder / f"{Path(str(argv[0])).name}-{len(self.processes)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self.inside(name, argv), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        self.processes.append(process)
        return process

    def listening(self, name: str, port: int, kind: str = "udp") -> None:
        """Wait until somebody listens."""
        file = f"/proc/{{}}/net/{kind}"
        wanted = f":{port:04X} "
        deadline = time.monotonic() + 20
        process = self.processes[-1]
        while time.monotonic() < deadline:
            assert process.poll() is None, self._log()
            with contextlib.suppress(OSError):
                if wanted in Path(file.format(process.pid)).read_text():
                    return
            time.sleep(0.05)
        raise AssertionError(f"nobody listens on {port}: {self._log()}")

    def _log(self) -> str:
        return "\n".join(p.read_text(errors="replace")[-1000:] for p in self.folder.glob("*.log"))

    # --- servers ---

    def dnsmasq(
        self, *options: str, where: str = "server", interface: str = "eth0"
    ) -> subprocess.Popen[bytes]:
        leases = self.folder / f"leases-{len(self.processes)}"
        process = self.spawn(
            where,
            [
                *("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root"),
                *(f"--interface={interface}", "--bind-interfaces", "--no-ping", "--log-dhcp"),
                *("--no-hosts", f"--dhcp-leasefile={leases}", "--no-resolv"),
                f"--pid-file={leases}.pid",
                *options,
            ],
        )
        self.listening(where, 67)
        return process

    def config(self, mac: str, text: str) -> Path:
        """Write a machine's own configuration."""
        path = self.tftp / "pxelinux.cfg" / f"01-{mac.replace(':', '-')}"
        path.write_text(text)
        return path

    # --- what is tested ---

    def pypxeboot(
        self, *arguments: str | Path, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.inside("host", [PYPXEBOOT, *arguments]),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def ports(self) -> set[str]:
        """Return the names of what is plugged into the bridge."""
        shown = subprocess.run(
            ["ip", *self.host, "-o", "link", "show", "master", self.bridge],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return {line.split(":")[1].split("@")[0].strip() for line in shown.splitlines()}


@contextlib.contextmanager
def network(folder: Path, **how: Any) -> Iterator[Network]:
    made = Network(folder, **how)
    try:
        made.up()
        yield made
    finally:
        made.down()
