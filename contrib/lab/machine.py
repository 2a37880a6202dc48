"""The virtual machine of a lab: QEMU, its disks, its saved state.

The state is a migration to a file, so the disks of a start are overlays over those that belong to
the state, made in no time. It can be resumed only by the same QEMU with the same machine, CPU,
memory and devices: all of that is in :func:`hardware`, and in the key of the state.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import attrs

from contrib.lab.errors import LabError, TimeUp
from contrib.lab.image import Image
from contrib.lab.proc import DIES_WITH_PARENT, dies_with_us, run
from contrib.lab.qmp import Qmp

QEMU = "qemu-system-x86_64"
DISKS = {"root": "8G", "data": "24G", "spare": "8G"}
"""In their order inside: vda, vdb, vdc; vdd is the supplies."""
_LINUX = (
    "root=/dev/vda rw rootfstype=ext4 mitigations=off nokaslr random.trust_cpu=on audit=0"
    " apparmor=0 fsck.mode=skip net.ifnames=0 raid=noautodetect quiet loglevel=4"
)
_XEN = (
    "console=com1 com1=115200,8n1 dom0_mem=2G,max:2G dom0_max_vcpus=2 sched=credit bootscrub=0"
    " smep=0 smap=0 spec-ctrl=no xpti=no loglvl=info guest_loglvl=info"
)
_FORWARD = "hostfwd=tcp:127.0.0.1:0-10.0.2.15:22"
_PORT = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)")


@attrs.frozen(kw_only=True)
class Mode:
    """A kind of host.

    :param memory: MiB.
    :param has_guest: whether the lab's own guest is at hand inside, in ``/opt/lab/guest``.
    """

    name: str
    cpu: str
    memory: int
    has_guest: bool = False

    def boot(self, image: Image) -> list[str]:
        """Return QEMU's options that boot it."""
        if self.name == "xen":
            # Multiboot: the first module is dom0's kernel with its command line.
            modules = f"{image.kernel} {_LINUX} console=hvc0,{image.initrd}"
            return ["-kernel", str(image.xen), "-initrd", modules, "-append", _XEN]
        line = f"{_LINUX} console=ttyS0,115200 kvm_amd.nested=0"
        return ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", line]


MODES = {
    # What has no SVM has no KVM inside, and under Xen neither PVH nor HVM guests.
    "kvm": Mode(name="kvm", cpu="EPYC-v1,+svm,+npt,+nrip-save", memory=4096),
    # Of the models with SVM one without AVX: with it files were damaged when they were copied
    # under Xen. Without RDTSCP: where a hypervisor intercepts it QEMU says it was RDTSC, and Xen,
    # which looks, lets the guest fault.
    "xen": Mode(
        name="xen",
        cpu="Opteron_G3-v1,+npt,+nrip-save,+rdrand,-monitor,-rdtscp",
        memory=6144,
        has_guest=True,
    ),
}


def hardware(mode: Mode) -> list[str]:
    """Return QEMU's options for all that is the same at every start."""
    return [
        *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512"),
        *("-cpu", mode.cpu, "-smp", "2", "-m", f"{mode.memory}M"),
        *("-display", "none", "-vga", "none", "-nodefaults", "-no-user-config"),
        *("-device", "virtio-rng-pci"),
    ]


def version() -> str:
    """Return QEMU's version, as it says it."""
    return run([QEMU, "--version"]).decode().splitlines()[0]


def make_overlays(folder: Path, bases: dict[str, Path]) -> None:
    """Make the disks of a machine in a folder; those without a base are empty."""
    for name, size in DISKS.items():
        backing = ["-b", str(bases[name]), "-F", "qcow2"] if name in bases else []
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(folder / f"{name}.qcow2")]
        run([*argv, size])


@attrs.frozen(kw_only=True)
class Start:
    """How a machine is started.

    :param folder: holds its disks, and gets its console's log.
    :param supplies: the read-only disk.
    :param state: what to resume; boots if there is none.
    :param seconds: how long it may run at all.
    :param lasting: it goes on when this process ends.
    :param lock: a descriptor that the machine holds as long as it lives.
    """

    mode: Mode
    image: Image
    folder: Path
    supplies: Path
    seconds: float
    state: Path | None = None
    lasting: bool = False
    lock: int | None = None


class Machine:
    """A machine that runs. As a context manager, it is killed in the end."""

    def __init__(self, start: Start) -> None:
        self._folder = start.folder
        self._qmp = Qmp()
        with contextlib.ExitStack() as stack:
            inherited = [self._qmp.descriptor]
            if start.lock is not None:
                inherited.append(start.lock)
            boot = start.mode.boot(start.image)
            if start.state is not None:
                stream = stack.enter_context(start.state.open("rb"))
                inherited.append(stream.fileno())
                boot += ["-incoming", f"fd:{stream.fileno()}"]
            log = stack.enter_context((start.folder / "qemu.log").open("wb"))
            self._process = subprocess.Popen(
                [*_limits(start), QEMU, *hardware(start.mode), *self._devices(start), *boot],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=start.folder,
                pass_fds=inherited,
                start_new_session=True,  # ctrl-C is for us to deal with
            )
        try:
            self._qmp.begin()
            if start.state is not None:
                self._resume()
            self.port = self._find_port()
        except BaseException as error:
            self.kill()
            if isinstance(error, LabError):
                raise LabError(f"{error}\n{self._last_words()}".strip()) from error
            raise

    def _devices(self, start: Start) -> list[str]:
        words = [
            *("-serial", f"file:{start.folder / 'console.log'}"),
            *("-chardev", f"socket,id=qmp,fd={self._qmp.descriptor}"),
            *("-mon", "chardev=qmp,mode=control"),
            # Restricted: nothing gets out, only our ssh gets in; by a port that is free.
            # Who asks for an address by DHCP, a guest inside, mustn't get the host's.
            *("-netdev", f"user,id=net,restrict=on,dhcpstart=10.0.2.100,{_FORWARD}"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
        ]
        drives = [
            *(f"file={name}.qcow2,format=qcow2,discard=unmap" for name in DISKS),
            f"file={start.supplies},format=raw,readonly=on",
        ]
        for number, drive in enumerate(drives):
            words += [
                *("-drive", f"if=none,id=disk{number},cache=unsafe,{drive}"),
                *("-device", f"virtio-blk-pci,drive=disk{number},serial=lab{number}"),
            ]
        return words

    @property
    def pid(self) -> int:
        """The process to end it by."""
        return self._process.pid

    def alive(self) -> bool:
        """Tell whether it still runs."""
        return self._process.poll() is None

    def _resume(self, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while self._qmp.command("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise TimeUp(f"the saved state isn't loaded after {seconds:.0f} s")
            time.sleep(0.02)
        self._qmp.command("cont")

    def _find_port(self) -> int:
        match = _PORT.search(self._qmp.human("info usernet"))
        if match is None:
            raise LabError("QEMU forwards no port to the lab")
        return int(match[1])

    def console(self) -> str:
        """Return what was written to its console."""
        return (self._folder / "console.log").read_text(errors="replace")

    def describe(self) -> str:
        """Return what is known of a machine that doesn't answer."""
        try:
            status = self._qmp.command("query-status", timeout=10)["status"]
        except LabError as error:
            status = str(error)
        lines = [line for line in self.console().splitlines() if line.strip()][-20:]
        return "\n".join([f"QEMU's status: {status}; the end of the console:", *lines])

    def wait_for_console(self, text: str, seconds: float) -> None:
        """Wait until a line of the console has a text."""
        deadline = time.monotonic() + seconds
        while text not in self.console():
            if not self.alive():
                raise LabError(f"QEMU ended\n{self._last_words()}".strip())
            if time.monotonic() > deadline:
                last = "\n".join(self.console().splitlines()[-15:])
                raise TimeUp(f"no {text} on the console after {seconds:.0f} s; its end:\n{last}")
            time.sleep(0.5)

    def save(self, path: Path, seconds: float = 300.0) -> None:
        """Write the machine's state to a file and end it; its disks belong to that state."""
        self._qmp.command("stop")
        with path.open("wb") as stream:
            self._qmp.pass_descriptor("state", stream.fileno())
        self._qmp.command("migrate-set-parameters", {"max-bandwidth": 2**40})
        self._qmp.command("migrate", {"uri": "fd:state"})
        deadline = time.monotonic() + seconds
        while (status := self._qmp.command("query-migrate").get("status")) != "completed":
            if status in {"failed", "cancelled"} or time.monotonic() > deadline:
                raise LabError(f"the state can't be saved: {status}")
            time.sleep(0.1)
        self._qmp.command("quit")
        self._process.wait(60)

    def release(self) -> None:
        """Leave it running."""
        self._qmp.close()

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._process.kill()
        self._process.wait()
        self._qmp.close()

    def _last_words(self) -> str:
        lines = (self._folder / "qemu.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _limits(start: Start) -> Sequence[str]:
    """Return what stands before QEMU: its limit of time, and that it ends with its parents."""
    limit = ["timeout", "--signal=KILL", f"{start.seconds:.0f}", *DIES_WITH_PARENT]
    return limit if start.lasting else dies_with_us(limit)


def kill(pid: int) -> None:
    """End a lasting machine, by the process that :attr:`Machine.pid` named."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
