"""Whether KVM works on a host: a test guest is run on it, since ``/dev/kvm`` alone proves little.

On nested or partly virtualized hosts the device may exist and open, while guests run a thousand
times slower than emulated ones, or hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import attrs

from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import DeadlineExceeded, VmclonerError
from vmcloner_core.trusted_files import make_folder, read_file

EMULATORS = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm")
_WORD = b"vmcloner-kvm-ok"


def boot_sector(loops: int, text: bytes) -> bytes:
    """Return a 512-byte boot sector for a PC: counts down ``loops``, writes ``text`` to the first
    serial port (I/O port 0x3f8) and resets the machine by the keyboard controller.

    16-bit code, loaded by the firmware at 0x7c00.
    """
    code = bytearray(
        b"\xfa"  # cli
        b"\x31\xc0"  # xor ax, ax
        b"\x8e\xd8"  # mov ds, ax
        b"\xfc"  # cld
        b"\x66\xb9"
        + loops.to_bytes(4, "little")  # mov ecx, loops
        + b"\x66\x49"  # again: dec ecx
        b"\x75\xfc"  # jnz again
        b"\xbe\x00\x00"  # mov si, text
        b"\xba\xf8\x03"  # mov dx, 0x3f8
        b"\xac"  # next: lodsb
        b"\x84\xc0"  # test al, al
        b"\x74\x03"  # jz done
        b"\xee"  # out dx, al
        b"\xeb\xf8"  # jmp next
        b"\xb0\xfe"  # done: mov al, 0xfe
        b"\xe6\x64"  # out 0x64, al
        b"\xf4"  # halt: hlt
        b"\xeb\xfd"  # jmp halt
    )
    pointer = code.index(b"\xbe\x00\x00") + 1
    code[pointer : pointer + 2] = (0x7C00 + len(code)).to_bytes(2, "little")
    return (bytes(code) + text + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@attrs.frozen(kw_only=True)
class Acceleration:
    """Whether guests run on KVM; if not, why, and how to fix it."""

    works: bool = False
    reason: str = ""
    fix: str = ""


class KvmProbe:
    """Tells whether KVM works on one host. Thread-safe."""

    device = Path("/dev/kvm")
    deadline = 4.0
    """Seconds for the test guest; on working KVM it takes a tenth of one."""
    loops = 100_000_000
    """Iterations of a busy loop: too many for a KVM that single-steps its guests."""

    def __init__(self, context: DriverContext) -> None:
        self._runner = context.runner
        self._cache = context.host.state / "kvm.json"

    def emulator(self) -> str | None:
        """Return the path of QEMU's system emulator, or None if it isn't installed."""
        return next((path for name in EMULATORS if (path := self._runner.which(name))), None)

    def measure(self) -> Acceleration:
        """Run a small guest on KVM; takes 0.1 s where that works, else up to :attr:`deadline`."""
        qemu = self.emulator()
        if qemu is None:
            return Acceleration(
                reason="QEMU is not installed", fix="apt-get install qemu-system-x86"
            )
        if not self.device.exists():
            return Acceleration(
                reason=f"{self.device} is missing",
                fix="enable virtualization in the firmware and load kvm_intel or kvm_amd",
            )
        if not os.access(self.device, os.R_OK | os.W_OK):
            return Acceleration(
                reason=f"no permission for {self.device}", fix="usermod -aG kvm USER"
            )
        return self._run_guest(qemu)

    def cached(self, *, fresh: bool = False) -> Acceleration:
        """Return :meth:`measure`, kept on disk until the host reboots or QEMU changes.

        :param fresh: measure now, and keep that.
        """
        qemu = self.emulator()
        if qemu is None or not os.access(self.device, os.R_OK | os.W_OK):
            return self.measure()  # quick, and may change at any time
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        key = f"{boot} {qemu} {Path(qemu).stat().st_mtime_ns}"
        found = None if fresh else _recall(self._cache, key)
        if found is None:
            found = self.measure()
            _remember(self._cache, key, found)
        return found

    def _run_guest(self, qemu: str) -> Acceleration:
        argv = [
            # If vmcloner is killed meanwhile, a guest that makes no progress must not stay.
            *("timeout", "--signal=KILL", f"{self.deadline + 1:g}"),
            *(qemu, "-accel", "kvm", "-machine", "pc", "-m", "16"),
            *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-serial", "file:/dev/stdout"),
            *("-drive", "if=floppy,format=raw,readonly=on,file=/dev/stdin"),
        ]
        try:
            sector = boot_sector(self.loops, _WORD)
            result = self._runner.run(argv, timeout=self.deadline, input=sector)
        except DeadlineExceeded:
            reason = f"{self.device} opens, but a test guest did not run within {self.deadline:g} s"
            return Acceleration(reason=reason)
        except VmclonerError as error:
            return Acceleration(reason=error.message)
        if _WORD not in result.stdout:
            return Acceleration(reason="the test guest on KVM ended without output")
        return Acceleration(works=True)


def _recall(file: Path, key: str) -> Acceleration | None:
    try:
        known = json.loads(read_file(file, trusted=False))
        if known["key"] == key:
            return Acceleration(works=known["works"] is True, reason=str(known["reason"]))
    except (VmclonerError, ValueError, LookupError, TypeError, RecursionError):
        pass  # missing or damaged: it is only a cache
    return None


def _remember(file: Path, key: str, found: Acceleration) -> None:
    said = json.dumps({"key": key, "works": found.works, "reason": found.reason})
    # What can't be kept is measured again next time.
    with contextlib.suppress(OSError):
        make_folder(file.parent)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".kvm-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(said)
            Path(name).replace(file)
        except OSError:
            Path(name).unlink()
