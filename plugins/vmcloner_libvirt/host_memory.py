"""How much of the host's memory guests can have.

    available = MemAvailable - promised            (at most CommitLimit - Committed_AS, if the
                                                    kernel doesn't overcommit)
    promised  = sum over running QEMUs of max(0, guest memory + overhead - resident memory)

MemAvailable is the kernel's own estimate (proc(5), /proc/meminfo): free memory and the caches that
it can drop. Shared memory (tmpfs) is among the caches, but can't be dropped; huge pages that are
set aside aren't free. A guest that has just started has touched little of its memory, and will
touch the rest.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
_NAME = re.compile(r"hugepages-(\d+)kB")
_SIZE = re.compile(r"(?:size=)?(\d+)([KMGTkmgt]?)[bB]?")
_UNITS = {"": 1024**2, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_STRICT = "2"  # vm.overcommit_memory


def available(overhead: int) -> int | None:
    """Return the bytes that more guests can have, None where the kernel doesn't say.

    :param overhead: bytes that QEMU takes beside a guest's memory.
    """
    found = _meminfo()
    if "MemAvailable" not in found:
        return None
    free = found["MemAvailable"]
    with contextlib.suppress(OSError, KeyError):
        if (PROC / "sys/vm/overcommit_memory").read_text().strip() == _STRICT:
            free = min(free, found["CommitLimit"] - found["Committed_AS"])
    return max(0, free - promised(overhead))


def _meminfo() -> dict[str, int]:
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            found[key] = int(value.split()[0]) * 1024
    return found


def promised(overhead: int) -> int:
    """Return the bytes that running guests may still touch."""
    return sum(max(0, size + overhead - resident) for size, resident in _guests())


def _guests() -> Iterator[tuple[int, int]]:
    """Yield (memory, resident memory) of each QEMU on the host, whoever started it."""
    for name in filter(str.isdecimal, os.listdir(PROC)):  # noqa: PTH208 - of hundreds
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended, or isn't ours to see
            if not _comm(name).startswith((b"qemu-system", b"qemu-kvm")):
                continue
            folder = PROC / name
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            size = _size(words[words.index("-m") + 1])
            yield size, _resident((folder / "status").read_text())


def _comm(pid: str) -> bytes:
    """Return a process's name. By plain system calls: hosts have hundreds of processes."""
    fd = os.open(f"{PROC}/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def _size(text: str) -> int:
    """Return the bytes of QEMU's option ``-m``: ``size=1048576k,slots=2``, ``512``, ``1G``."""
    match = _SIZE.match(text)
    return int(match[1]) * _UNITS[match[2].upper()] if match is not None else 0


def _resident(status: str) -> int:
    """Return the resident memory in ``/proc/PID/status``, with huge pages."""
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(lines.get(key, "0").split()[0]) * 1024 for key in ("VmRSS", "HugetlbPages"))


def pages() -> dict[int, int]:
    """Return the free bytes in huge pages, by the size of these pages; the default size first."""
    found: dict[int, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for folder in sorted(HUGE_PAGES.iterdir()):
            match = _NAME.fullmatch(folder.name)
            if match is not None:
                size = int(match[1]) * 1024
                free = int((folder / "free_hugepages").read_text())
                reserved = int((folder / "resv_hugepages").read_text())
                found[size] = max(0, free - reserved) * size
    default = _meminfo().get("Hugepagesize", 0)
    return dict(sorted(found.items(), key=lambda item: (item[0] != default, item[0])))
