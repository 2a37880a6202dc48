"""Runs a bootloader as libxl_bootloader.c of Xen 4.15 to 4.22 does, and takes over what it says."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

MAX_ITEM = 8192


@attrs.frozen(kw_only=True)
class Taken:
    """What libxl has after the bootloader: its exit status, the output, and the mapped files."""

    status: int
    console: str
    raw: bytes
    kernel: bytes | None = None
    ramdisk: bytes | None = None
    arguments: str | None = None
    left: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def run(
    bootloader: str | Path,
    arguments: Sequence[str | Path],
    disk: str | Path,
    *,
    prefix: Sequence[str] = (),
    options: Sequence[str] = (),
    folder: Path | None = None,
    during: Callable[[int, Path], None] = lambda _pid, _directory: None,
) -> Taken:
    """Run it.

    :param prefix: put before the bootloader's name (``ip netns exec …``).
    :param options: what libxl puts before ``--output`` (``--args=…``, ``--runas=…``).
    :param folder: where the output goes; None for one made up.
    :param during: called with the process id and the output directory once it runs.
    """
    base = Path(tempfile.mkdtemp(prefix="xenlib.")) if folder is None else folder
    directory, output = base / "bootloader.7.d", base / "bootloader.7.out"
    directory.mkdir(0o700)
    os.close(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    argv = [
        *(*prefix, str(bootloader), *options, f"--output={output}", "--output-format=simple0"),
        *(f"--output-directory={directory}", *map(str, arguments), str(disk)),
    ]
    master, slave = pty.openpty()
    pid = os.fork()
    if pid == 0:
        os.close(master)
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(slave, number)
        os.environ["TERM"] = "vt100"
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            os.execvp(argv[0], argv)
        finally:
            os._exit(255)
    os.close(slave)
    try:
        during(pid, directory)
        console = _console(master)
        _pid, status = os.waitpid(pid, 0)
        return _take(os.waitstatus_to_exitcode(status), console, output, directory)
    finally:
        os.close(master)
        if folder is None:
            shutil.rmtree(base)


def _console(master: int) -> str:
    """Read until nobody has the terminal open: that is when libxl looks at the status."""
    text = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 1)[0]:
            continue
        try:
            data = os.read(master, 4096)
        except OSError:
            data = b""
        if not data:
            return text.decode(errors="replace")
        text += data
    raise AssertionError(f"the bootloader goes on for too long: {text!r}")


def _take(status: int, console: str, output: Path, directory: Path) -> Taken:
    raw = output.read_bytes()
    found: dict[str, bytes] = {}
    warnings = []
    for item in raw.split(b"\0") if status == 0 else []:
        name, _space, value = item.partition(b" ")
        if len(item) >= MAX_ITEM:
            warnings.append("overly long item ignored")
        elif name in (b"kernel", b"ramdisk"):
            path = Path(os.fsdecode(value))
            assert path.stat().st_mode & 0o777 == 0o600
            found[name.decode()] = path.read_bytes()
            path.unlink()
        elif name == b"args":
            found["args"] = value
        elif item:
            warnings.append(f"unexpected output {item!r}")
    left = tuple(sorted(path.name for path in directory.iterdir()))
    shutil.rmtree(directory)
    output.unlink()
    return Taken(
        status=status,
        console=console,
        raw=raw,
        kernel=found.get("kernel"),
        ramdisk=found.get("ramdisk"),
        arguments=found["args"].decode() if "args" in found else None,
        left=left,
        warnings=tuple(warnings),
    )
