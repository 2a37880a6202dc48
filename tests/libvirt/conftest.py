"""Drivers on libvirt's test driver and on the real daemon, and guests for them."""

import gc
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from vmcloner_core.model import (
    BootConfig,
    DomainSpec,
    Labels,
    Nic,
    NicSpec,
    Volume,
    clone_mac,
    clone_uuid,
)
from vmcloner_core.testing.samples import make_context, make_labels
from vmcloner_libvirt.kvm import KvmDriver
from vmcloner_libvirt.libxl import Logs
from vmcloner_libvirt.settings import KvmSettings, XenSettings
from vmcloner_libvirt.xen import XenDriver
from vmcloner_libvirt.xenhost import XenHost


@pytest.fixture(autouse=True)
def no_last_error() -> None:
    """Forget libvirt's last error in this thread: one that a test makes by itself would have it."""
    if "libvirt" in sys.modules:
        sys.modules["libvirt"].virResetLastError()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that QEMU's user can reach, which pytest's own aren't."""
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make_driver(place: Path) -> Iterator[Callable[..., KvmDriver]]:
    drivers = []

    def make(uri: str, **settings: object) -> KvmDriver:
        context = make_context(place, "kvm")
        drivers.append(KvmDriver(context, KvmSettings(uri=uri, **settings)))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


@pytest.fixture
def xen_root(tmp_path: Path) -> Path:
    """The files of a host of Xen 4.17."""
    root = tmp_path / "xen-host"
    programs = ("lib/xen-4.17/bin/pygrub", "bin/pygrub", "libexec/xen-qemu-system-i386")
    for place in (f"usr/{program}" for program in programs):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch(mode=0o755)
    (root / "log/xen/console").mkdir(parents=True)
    (root / "log/libxl").mkdir()
    return root


@pytest.fixture
def make_xen(place: Path, xen_root: Path) -> Iterator[Callable[..., XenDriver]]:
    """Make Xen's driver on libvirt's test driver, with the files of :func:`xen_root`."""
    drivers = []

    def make(**settings: object) -> XenDriver:
        context = make_context(place, "xen")
        given = {"uri": "test:///default", "console_logs": xen_root / "log/xen/console"}
        logs = Logs(xen=xen_root / "log/xen", libxl=xen_root / "log/libxl")
        drivers.append(
            XenDriver(
                context,
                XenSettings(**(given | settings)),
                host=XenHost(runner=context.runner, root=xen_root),
                logs=logs,
            )
        )
        return drivers[-1]

    gc.collect()  # a traceback that lives on holds its connection, and so that test's domains
    yield make
    for driver in drivers:
        driver.close()


@pytest.fixture
def paper(make_driver: Callable[..., KvmDriver]) -> KvmDriver:
    """A driver on libvirt's test driver: real calls, no guests."""
    gc.collect()  # a traceback that lives on holds its connection, and so that test's domains
    return make_driver("test:///default")


@pytest.fixture
def new_labels() -> Callable[..., Labels]:
    def make(index: int = 1, fleet: str = "web", **changes: str) -> Labels:
        return make_labels(fleet, index, **changes)

    return make


@pytest.fixture
def new_spec(place: Path) -> Callable[..., DomainSpec]:
    """Specify a clone; its disk isn't made."""

    def make(labels: Labels, **changes: object) -> DomainSpec:
        name = f"{labels.clone}-disk0"
        volume = Volume(name=name, pool="files", labels=labels, path=place / name, size=1024**2)
        mac = clone_mac("52:54:00", "local", labels.fleet, labels.index, 0)
        spec = DomainSpec(
            labels=labels,
            uuid=clone_uuid("local", labels.fleet, labels.index, labels.template),
            memory=32 * 1024**2,
            vcpus=1,
            boot=BootConfig(),
            volumes=(volume,),
            nics=(Nic(spec=NicSpec(), mac=mac),),
        )
        return attrs.evolve(spec, **changes)

    return make


@pytest.fixture
def new_guest(new_spec: Callable[..., DomainSpec]) -> Callable[..., DomainSpec]:
    """Specify a clone with a disk that boots at once, says its name on the console, and runs on."""

    def make(labels: Labels, *, ending: bytes = HALT) -> DomainSpec:
        spec = new_spec(labels)
        sector = boot_sector(f"here is {labels.clone}\n".encode(), ending)
        spec.volumes[0].path.write_bytes(sector.ljust(1024**2, b"\0"))
        return spec

    return make


# 16-bit code. ECHO reads the serial port and writes back what comes; POWER_OFF writes the sleep
# command to the ACPI registers where the firmware of a q35 machine puts them.
HALT = b"\xfb\xf4\xeb\xfd"  # sti; again: hlt; jmp again
ECHO = (
    b"\xba\xfd\x03\xec\xa8\x01\x74\xf8"  # again: mov dx, 0x3fd; in al, dx; test al, 1; jz again
    b"\xba\xf8\x03\xec\xee\xeb\xf1"  # mov dx, 0x3f8; in al, dx; out dx, al; jmp again
)
POWER_OFF = b"\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd"  # mov dx, 0x604; mov ax, 0x2000; out; hlt


BUTTON = (
    b"\xba\x02\x06\xb8\x00\x01\xef"  # mov dx, 0x602; mov ax, 0x100; out: enable the power button
    b"\xba\x00\x06\xed\xf6\xc4\x01\x74\xfa"  # mov dx, 0x600; again: in; test ah, 1; jz again
    + POWER_OFF
)
RESET = b"\xba\xf9\x0c\xb0\x06\xee" + HALT  # mov dx, 0xcf9; mov al, 6; out dx, al
PANIC = b"\xba\x05\x05\xb0\x01\xee" + HALT  # mov dx, 0x505; mov al, 1; out: as Linux's pvpanic


@pytest.fixture
def endings() -> dict[str, bytes]:
    """What a guest does once it has said its name."""
    return {
        "halt": HALT,
        "echo": ECHO,
        "power off": POWER_OFF,
        "wait for the button": BUTTON,
        "panic": PANIC,
        "reboot": RESET,
    }


def boot_sector(text: bytes, ending: bytes) -> bytes:
    """Return a PC's boot sector that writes ``text`` to COM1 and goes on with ``ending``."""
    start = b"\x31\xc0\x8e\xd8\xfc"  # xor ax, ax; mov ds, ax; cld
    write = (
        b"\xba\xf8\x03"  # mov dx, 0x3f8
        b"\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # next: lodsb; test al, al; jz done; out; jmp next
    )
    pointer = 0x7C00 + len(start) + 3 + len(write) + len(ending)
    code = start + b"\xbe" + pointer.to_bytes(2, "little") + write + ending  # mov si, pointer
    return (code + text + b"\0").ljust(510, b"\0") + b"\x55\xaa"
