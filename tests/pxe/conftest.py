"""One network for all tests of a run, with its servers."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.pxe import runner
from tests.pxe.network import ATFTPD, HERE, HOSTILE, PYPXEBOOT, WEB, Network, network


@attrs.frozen
class Site:
    """The network, a cache of its own, and what the hostile server heard.

    A guest's MAC address says what becomes of it (see :func:`site`).
    """

    net: Network
    folder: Path

    @property
    def complaints(self) -> Path:
        return self.folder / "complaints"

    def arguments(self, mac: str, *more: str) -> list[str]:
        return [f"--mac={mac}", "--interface=br0", f"--cache={self.folder / 'cache'}", *more]

    def boot(self, mac: str, *more: str, **how: object) -> runner.Taken:
        """Boot a guest as libxl does."""
        inside = self.net.inside("host", [])
        disk = how.pop("disk", "/dev/null")
        return runner.run(PYPXEBOOT, self.arguments(mac, *more), disk, prefix=inside, **how)

    def dry(self, mac: str, *more: str) -> subprocess.CompletedProcess[str]:
        return self.net.pypxeboot("--dry-run", *self.arguments(mac, *more))

    def leases(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("leases-*[0-9]"))


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The third byte of a MAC address says what becomes of a guest.

    00 dnsmasq · 01 atftpd · 02 an iPXE script by http · 03 the hostile TFTP server ·
    04 a server without TFTP · 05 nobody answers · 06 a DHCP server that NAKs · 07 a pool of two ·
    08 two DHCP servers · 09 options 209 and 210 · 0a no boot file · 0b iPXE as boot file ·
    0c what to boot is said by a proxyDHCP server · 0d which has to be asked for it ·
    0e the host itself is the server · 0f an option that is no text ·
    10 iPXE as boot file, and then nobody answers it
    """
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-pxe-"))
    folder.chmod(0o755)
    try:
        with network(folder) as net:
            _serve(net, folder)
            yield Site(net, folder)
    finally:
        shutil.rmtree(folder)


def _serve(net: Network, folder: Path) -> None:
    names = {"01": "windows", "02": "script", "03": "hostile", "04": "closed", "05": "nobody",
             "06": "nobody", "07": "small", "08": "two", "09": "options", "0a": "bare",
             "0b": "chain", "0c": "bare", "0d": "bare", "0e": "nobody", "0f": "garbled",
             "10": "mute"}  # fmt: skip
    net.dnsmasq(
        *(f"--dhcp-mac=set:{name},52:54:{byte}:*:*:*" for byte, name in names.items()),
        "--dhcp-userclass=set:ipxe,iPXE",
        "--dhcp-ignore=tag:nobody",
        "--dhcp-ignore=tag:mute,tag:ipxe",
        "--dhcp-option-force=tag:garbled,210,ff:fe:fd",
        "--dhcp-boot=tag:mute,undionly.kpxe",
        "--dhcp-range=tag:!small,10.77.0.50,10.77.0.199,255.255.255.0,1h",
        "--dhcp-range=tag:small,10.77.0.240,10.77.0.241,255.255.255.0,1h",
        "--dhcp-reply-delay=tag:two,1",
        "--dhcp-boot=tag:!bare,tag:!mute,pxelinux.0",
        f"--dhcp-boot=tag:windows,pxelinux.0,,{ATFTPD}",
        f"--dhcp-boot=tag:script,http://{WEB}/boot.ipxe",
        f"--dhcp-boot=tag:hostile,pxelinux.0,,{HOSTILE}",
        f"--dhcp-boot=tag:closed,pxelinux.0,,{WEB}",
        "--dhcp-boot=tag:chain,tag:!ipxe,undionly.kpxe",
        "--dhcp-boot=tag:chain,tag:ipxe,scripts/boot.ipxe",
        "--dhcp-option-force=tag:options,209,own.cfg",
        "--dhcp-option-force=tag:options,210,prefix/",
        "--enable-tftp",
        f"--tftp-root={net.tftp}",
    )
    net.dnsmasq(
        "--dhcp-range=10.77.0.0,proxy",
        "--dhcp-mac=set:proxied,52:54:0c:*:*:*",
        "--dhcp-mac=set:asked,52:54:0d:*:*:*",
        "--dhcp-ignore=tag:!proxied,tag:!asked",
        "--dhcp-boot=tag:proxied,pxelinux.0",
        "--pxe-service=x86PC,Install,pxelinux",
        "--enable-tftp",
        f"--tftp-root={net.tftp}",
        where="proxy",
    )
    net.spawn("other", ["atftpd", "--daemon", "--no-fork", "--bind-address", ATFTPD,
                        "--user", "root", "--logfile", "-", net.tftp])  # fmt: skip
    net.listening("other", 69)
    net.dnsmasq(
        "--dhcp-range=10.77.0.210,10.77.0.219,255.255.255.0,1h",
        "--dhcp-mac=set:own,52:54:0e:*:*:*",
        "--dhcp-ignore=tag:!own",
        "--dhcp-boot=pxelinux.0",
        "--enable-tftp",
        f"--tftp-root={net.tftp}",
        where="host",
        interface="br0",
    )
    # What only the host reaches, and its guests mustn't.
    net.spawn("host", [sys.executable, "-m", "http.server", "80", "--bind", "::",
                       "--directory", net.tftp])  # fmt: skip
    net.listening("host", 80, "tcp6")
    script = HERE / "hostile.py"
    net.spawn("other", [sys.executable, script, "tftp", HOSTILE, net.tftp, folder / "complaints"])
    net.listening("other", 69)
    net.spawn("other", [sys.executable, script, "dhcp", HOSTILE])
    net.listening("other", 67)
    net.spawn("other", [sys.executable, script, "http", HOSTILE])
    net.listening("other", 80, "tcp")
    net.spawn("other", [sys.executable, "-m", "http.server", "80", "--bind", WEB,
                        "--directory", net.tftp])  # fmt: skip
    net.listening("other", 80, "tcp")
