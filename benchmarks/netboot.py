"""Measure booting from the network on the host; see README.md beside this file.

Everything happens in network namespaces that are made for it. Run it as root, as a module, from the
top of the checkout: ``.venv/bin/python -m benchmarks.netboot``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from tests.pxe.network import ATFTPD, Network, network
from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import Host
from vmcloner_core.process import LocalRunner
from vmcloner_pxe import tftp
from vmcloner_tiny.builder import TinyBuilder

SERVER = "10.77.0.1"
SIZE = 60 * 1000**2
RUNS = 3
BOOTED = b"Linux version"
MACHINE = "5c7c0f3e-6f0a-5a52-9d7e-0d6a1b8a7f11"
ARGUMENTS = "console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check"


@attrs.frozen(kw_only=True)
class Row:
    """One way of doing a section's work: the best of several runs, in seconds."""

    section: str
    way: str
    seconds: float
    cpu: float | None = None
    ratio: float | None = None
    note: str = ""


# --- TFTP ---------------------------------------------------------------------------------------


def fetch(way: str, server: str, name: str, block: int, window: int) -> None:
    """Fetch a file once, to nowhere, in this process."""
    if way == "vmcloner":
        with (
            Path(os.devnull).open("wb", buffering=1024**2) as sink,
            tftp.Download(
                server, name, max_size=SIZE, deadline=time.monotonic() + 300,
                block_size=block, window=window,
            ) as download,
        ):  # fmt: skip
            download.open()
            download.read(sink.write)
        return
    import tftpy

    options = {} if block == 512 else {"blksize": block}
    tftpy.TftpClient(server, 69, options=options).download(name, os.devnull)


def timed_in(net: Network, argv: Sequence[str | Path]) -> tuple[float, float]:
    """Return wall and processor seconds of a command in the host's namespace.

    Those of a download, where it tells them: a library's user has started Python already.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(net.inside("host", argv), check=True, capture_output=True, timeout=600)
    wall = time.perf_counter() - began
    if told := done.stdout.split():
        return float(told[0]), float(told[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, sum(after[:2]) - sum(before[:2])


def downloads(net: Network) -> Iterator[Row]:
    """A file of 60 MB by TFTP, to nowhere. The first is what others are compared with."""
    with (net.tftp / "big").open("wb") as stream:
        stream.write(os.urandom(1024**2))
        stream.truncate(SIZE)
    me = [sys.executable, "-m", "benchmarks.netboot", "--fetch"]
    ways: dict[str, tuple[str, list[str | Path]]] = {
        "vmcloner, dnsmasq, blocks of 1428": ("", [*me, "vmcloner", SERVER, "1428", "1"]),
        "curl, dnsmasq, blocks of 1428": (
            "", ["curl", "-s", "--tftp-blksize", "1428", "-o", os.devnull, f"tftp://{SERVER}/big"],
        ),
        "tftpy, dnsmasq, its default, 512": ("", [*me, "tftpy", SERVER, "512", "1"]),
        "tftpy, dnsmasq, blocks of 1428": ("", [*me, "tftpy", SERVER, "1428", "1"]),
        "vmcloner, atftpd, window 1": ("windows", [*me, "vmcloner", ATFTPD, "1428", "1"]),
        "vmcloner, atftpd, window 16": ("windows", [*me, "vmcloner", ATFTPD, "1428", "16"]),
        "vmcloner, atftpd, window 64": ("windows", [*me, "vmcloner", ATFTPD, "1428", "64"]),
    }  # fmt: skip
    runs: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(RUNS):  # by turns: what else the machine does hits all alike
        for way, (_note, argv) in ways.items():
            runs[way].append(timed_in(net, argv))
    first = min(runs["vmcloner, dnsmasq, blocks of 1428"])[0]
    for way, results in runs.items():
        wall, cpu = min(results)
        yield Row(
            section="tftp 60 MB",
            way=way,
            seconds=wall,
            cpu=cpu,
            ratio=wall / first,
            note=f"{SIZE / wall / 1e6:.1f} MB/s",
        )


# --- many clones --------------------------------------------------------------------------------


def batch(net: Network, folder: Path, count: int, *, dry_run: bool = False) -> float:
    """Resolve so many clones of one kernel at once, with nothing in the cache; return seconds."""
    shutil.rmtree("/var/cache/vmcloner/pxe", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    guests = []
    for number in range(count):
        mac = f"52:54:00:00:51:{number:02x}"
        net.config(mac, f"DEFAULT k\nLABEL k\nKERNEL kernel\nAPPEND own={mac}\n")
        own = folder / mac
        own.mkdir(parents=True)
        guests.append({"key": mac, "mac": mac, "machine": MACHINE, "folder": str(own)})
    order = {"interface": "br0", "store": str(folder / "store"), "timeout": 100.0,
             "guests": guests, "dry_run": dry_run}  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(
        net.inside("host", [sys.executable, "-m", "vmcloner_pxe.batch"]),
        input=json.dumps(order).encode(),
        capture_output=True,
        check=True,
        timeout=300,
    )
    seconds = time.perf_counter() - began
    answers = json.loads(done.stdout)
    assert [a["error"] for a in answers] == [None] * count, answers
    return seconds


def clones(net: Network) -> Iterator[Row]:
    """Fifty clones of one kernel of 60 MB, against one of them."""
    content = bytearray(SIZE)
    content[0x202:0x206] = b"HdrS"
    (net.tftp / "kernel").write_bytes(content)
    folder = net.folder / "clones"
    one = min(batch(net, folder, 1) for _ in range(RUNS))
    dhcp = min(batch(net, folder, 50, dry_run=True) for _ in range(RUNS))
    fifty = min(batch(net, folder, 50) for _ in range(RUNS))
    batch(net, folder, 50, dry_run=True)
    yield Row(section="clones", way="1 clone", seconds=one, ratio=1.0)
    yield Row(section="clones", way="50 clones, DHCP and configurations only", seconds=dhcp)
    yield Row(
        section="clones",
        way="50 clones",
        seconds=fifty,
        ratio=fifty / one,
        note=f"{fifty / (2 * one + dhcp):.2f} of 2 x one + DHCP",
    )


# --- the guest's own ROM ------------------------------------------------------------------------


def machine(net: Network, options: Sequence[str | Path]) -> float:
    """Start an emulated machine; return the seconds until Linux says that it runs."""
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nographic", "-no-reboot",
            "-monitor", "none", "-serial", "stdio", *options]  # fmt: skip
    began = time.perf_counter()
    with subprocess.Popen(
        net.inside("host", argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        said = b""
        try:
            while BOOTED not in said:
                left = 300 - (time.perf_counter() - began)
                if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                    raise TimeoutError(said[-500:].decode(errors="replace"))
                said += process.stdout.read1(65536)
            return time.perf_counter() - began
        finally:
            process.kill()


def rom(net: Network) -> Iterator[Row]:
    """From nothing to "Linux version", under emulation."""
    context = DriverContext(
        host=Host(name="local", state=net.folder), name="tiny", runner=LocalRunner()
    )
    built = net.folder / "tiny"
    built.mkdir()
    TinyBuilder(context).build(built, lambda _done, _total: None)
    for name in ("vmlinuz", "initrd.img"):
        shutil.copyfile(built / name, net.tftp / name)
        (net.tftp / name).chmod(0o644)
    (net.tftp / "boot.ipxe").write_text(
        f"#!ipxe\nkernel vmlinuz {ARGUMENTS}\ninitrd initrd.img\nboot\n"
    )
    host = net.namespace("host")
    for words in ("tuntap add tap0 mode tap", "link set tap0 master br0 up"):
        subprocess.run(["ip", "-n", host, *words.split()], check=True, capture_output=True)
    mac = "52:54:02:00:00:01"  # its boot file is the script
    card = ["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=n,mac={mac}"]  # fmt: skip
    own = machine(net, [*card, "-boot", "n"])
    folder = net.folder / "handed-over"
    folder.mkdir()
    began = time.perf_counter()
    subprocess.run(
        net.inside("host", [
            Path(sys.executable).with_name("pypxeboot"), f"--mac={mac}", "--interface=br0",
            f"--output={folder / 'out'}", f"--output-directory={folder}", "--no-cache", os.devnull,
        ]),
        check=True,
        capture_output=True,
        timeout=120,
    )  # fmt: skip
    resolved = time.perf_counter() - began
    [kernel] = folder.glob("*.kernel.*")
    [initrd] = folder.glob("*.ramdisk.*")
    direct = ["-kernel", kernel, "-initrd", initrd, "-append", ARGUMENTS]
    booted = resolved + machine(net, [*card, *direct])
    section = 'to "Linux version", emulated'
    yield Row(section=section, way="pypxeboot, then the kernel directly", seconds=booted, ratio=1.0,
              note=f"{resolved:.2f} s of it pypxeboot")  # fmt: skip
    yield Row(section=section, way="the guest's own iPXE", seconds=own, ratio=own / booted)


# --- all of it ----------------------------------------------------------------------------------

SECTIONS = {"tftp": downloads, "clones": clones, "rom": rom}


def main() -> None:
    """Run the sections that are named, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; default all")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/netboot.json"))
    parser.add_argument("--fetch", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fetch:
        way, server, block, window = options.fetch
        began, used = time.perf_counter(), time.process_time()
        fetch(way, server, "big", int(block), int(window))
        sys.stdout.write(f"{time.perf_counter() - began} {time.process_time() - used}\n")
        return
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        with network(folder) as net:
            net.dnsmasq(
                "--dhcp-range=10.77.0.50,10.77.0.199,255.255.255.0,1h",
                "--dhcp-mac=set:script,52:54:02:*:*:*",
                "--dhcp-boot=pxelinux.0",
                "--dhcp-boot=tag:script,boot.ipxe",
                "--enable-tftp",
                f"--tftp-root={net.tftp}",
            )
            net.spawn("other", ["atftpd", "--daemon", "--no-fork", "--bind-address", ATFTPD,
                                "--user", "root", "--logfile", "-", net.tftp])  # fmt: skip
            net.listening("other", 69)
            rows = [row for name in options.sections or SECTIONS for row in SECTIONS[name](net)]
    finally:
        shutil.rmtree(folder)
    show(rows)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
        "rows": [attrs.asdict(row) for row in rows],
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n")


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("section", "way", "seconds", "processor s", "ratio", "note")
    for row in rows:
        cpu = "" if row.cpu is None else f"{row.cpu:.2f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.section, row.way, f"{row.seconds:.2f}", cpu, ratio, row.note)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
