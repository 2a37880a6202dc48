"""What libxl expects of a bootloader, byte for byte (Xen 4.15 to 4.22, libxl_bootloader.c).

It runs ``BOOTLOADER [--kernel=K] [--ramdisk=R] [--args=CMDLINE] [--runas=UID --quiet]
--output=FILE --output-format=simple0 --output-directory=DIR ARGUMENTS… DISK`` on a terminal of
the guest's console, reads FILE if it exits with 0, maps kernel and ramdisk and removes them.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Sequence
from glob import glob
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from vmcloner_core.errors import UsageError
from vmcloner_core.model import check_mac
from vmcloner_pxe.errors import CONTROL, NetbootError, reason, shown

FORMATS = ("simple0", "simple", "sxp")
MAX_ITEM = 8192
"""Bytes: libxl drops an item that is as long, with a warning that nobody reads."""
_ALIGN = 4
_BLOCK = 1024**2
_LIBXL_OWN = ("--args=", "--kernel=", "--ramdisk=", "--output")
_PYGRUB_FOLDERS = ("/usr/lib/xen-*/bin", "/usr/lib*/xen/bin", "/usr/libexec/xen*/bin")


def split_arguments(argv: Sequence[str]) -> list[str]:
    """Return the arguments, those taken apart that were joined.

    libvirt hands all of ``<bootloader_args>`` to libxl as one word. What libxl adds itself, and
    the disk at the end, may have spaces of their own.

    :raises UsageError: a quote isn't closed.
    """
    result: list[str] = []
    for number, word in enumerate(argv):
        last = number == len(argv) - 1 and not word.startswith("-")
        if last or word.startswith(_LIBXL_OWN) or not any(c.isspace() for c in word):
            result.append(word)
            continue
        try:
            result += shlex.split(word)
        except ValueError as error:
            raise UsageError(f"{shown(word)}: {error}") from error
    return result


def read_vif(words: Sequence[str]) -> dict[str, str]:
    """Return ``mac`` and ``interface`` of a network card as xl.cfg and xm's configuration spell it.

    Like ``mac=00:16:3e:00:00:01, bridge=xenbr0``, in one word or in several.

    :raises UsageError: its MAC address is none.
    """
    text = " ".join(words)
    found = {}
    if mac := re.search(r"\bmac=['\"]?([0-9A-Fa-f:-]+)", text):
        found["mac"] = checked_mac(mac[1])
    if bridge := re.search(r"\bbridge=['\"]?([^\s,'\"\]]+)", text):
        found["interface"] = bridge[1]
    return found


def checked_mac(text: str) -> str:
    """Return a MAC address in lower case with colons.

    :raises UsageError: it is none.
    """
    try:
        return check_mac(text)
    except Exception as error:
        raise UsageError(str(error)) from error


class Handover:
    """The files that a guest's kernel is handed over in. A context manager.

    Left by an error, it removes what it made and empties ``output``.

    :param output: the file that libxl reads, which it made; None for standard output.
    :param directory: the folder that libxl takes kernel and ramdisk from.
    :param max_size: bytes of each of those.
    """

    def __init__(self, output: Path | None, directory: Path, form: str, max_size: int) -> None:
        self._directory, self._form, self._max_size = directory, form, max_size
        self._made: list[Path] = []
        self._output: FileIO | None = None
        try:
            fd = (
                os.dup(1)
                if output is None
                else os.open(output, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            )
            self._output = os.fdopen(fd, "wb", buffering=0)
            self._named = output is not None
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(13, "not a folder that can be written to", str(directory))
        except OSError as error:
            self.discard()
            raise NetbootError(f"{error.filename}: {reason(error)}") from error

    def __enter__(self) -> Handover:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is not None:
            self.discard()
        if self._output is not None:
            self._output.close()

    def discard(self) -> None:
        """Remove what was made."""
        for path in self._made:
            with contextlib.suppress(OSError):
                path.unlink()
        self._made.clear()
        if self._output is not None and self._named:
            with contextlib.suppress(OSError):
                self._output.truncate(0)

    def add(self, what: str, files: Sequence[BinaryIO]) -> Path:
        """Copy open files, one behind the other at multiples of 4 bytes, to a file of our own.

        A copy, since libxl removes what it is given.

        :param what: ``kernel`` or ``ramdisk``. :raises NetbootError: names folder and reason.
        """
        path = self._directory / f"pypxeboot.{what}.{secrets.token_hex(8)}"
        self._made.append(path)  # before it is there: a signal may come in between
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(path, flags, 0o600), "wb") as target:
                join(files, target, self._max_size)
        except OSError as error:
            raise NetbootError(f"{self._directory}: {what}: {reason(error)}") from error
        return path

    def write(self, kernel: Path, ramdisk: Path | None, arguments: str) -> None:
        """Tell libxl; what was made is its from now on.

        :raises NetbootError: it could not be told so.
        """
        items = [("kernel", str(kernel))]
        if ramdisk is not None:
            items.append(("ramdisk", str(ramdisk)))
        if arguments:
            items.append(("args", arguments))
        content = render(items, self._form)
        try:
            assert self._output is not None  # noqa: S101 - __init__ opened it
            if self._named:
                self._output.truncate(0)
            self._output.write(content)
        except OSError as error:
            raise NetbootError(f"output: {reason(error)}") from error
        self._made.clear()


def render(items: Sequence[tuple[str, str]], form: str) -> bytes:
    """Return the items in one of libxl's :data:`FORMATS`.

    The values' author may be hostile: one with a separator in it could name any file of this
    host, for libxl to read and remove.

    :raises NetbootError: one can't be passed on whole.
    """
    for name, value in items:
        size = len(f"{name} {value}".encode(errors="surrogatepass"))
        if size >= MAX_ITEM:
            raise NetbootError(f"{name}: {size} bytes, of {MAX_ITEM - 1} at most")
        if CONTROL.search(value):
            raise NetbootError(f"{name}: has a control character")
    if form == "sxp":
        quoted = [(n, v.replace("\\", "\\\\").replace("'", "\\'")) for n, v in items]
        text = "linux " + "".join(f"({name} '{value}')" for name, value in quoted)
    else:
        end = "\0" if form == "simple0" else "\n"
        text = "".join(f"{name} {value}{end}" for name, value in items) + end
    return text.encode(errors="surrogatepass")


def join(files: Sequence[BinaryIO], target: BinaryIO, max_size: int) -> None:
    """Write files one behind the other, each at a multiple of 4 bytes, as initrds are.

    Their writer may still have them open, and be hostile: of each no more is read than it has now.

    :param max_size: bytes of all together. :raises NetbootError: they are more.
    """
    for file in files:
        at = target.tell()
        target.write(b"\0" * (-at % _ALIGN))
        target.flush()
        size = os.fstat(file.fileno()).st_size
        if target.tell() + size > max_size:
            raise NetbootError(f"more than {max_size} bytes to hand over", hint="raise --max-size")
        file.seek(0)
        if not _shared(file, target, size):
            while size and (block := file.read(min(size, _BLOCK))):
                target.write(block)
                size -= len(block)
    target.flush()


def _shared(file: BinaryIO, target: BinaryIO, size: int) -> bool:
    """Copy inside the kernel, by shared blocks where the file system can; False: not possible."""
    try:
        while size and (done := os.copy_file_range(file.fileno(), target.fileno(), size)):
            size -= done
    except OSError as error:
        # Other than these, a plain copy would fail in the same way, or is half done.
        if error.errno in (18, 22, 38, 95):  # EXDEV EINVAL ENOSYS EOPNOTSUPP
            return False
        raise
    target.seek(0, os.SEEK_END)
    return True


def find_pygrub() -> str:
    """Return where pygrub is: with Xen's private programs, or on the PATH.

    :raises NetbootError: it isn't installed.
    """
    folders = [folder for pattern in _PYGRUB_FOLDERS for folder in sorted(glob(pattern))]  # noqa: PTH207
    path = ":".join([*folders, os.environ.get("PATH") or os.defpath])
    found = shutil.which("pygrub", path=path)
    if found is None:
        raise NetbootError(
            "the guest is to boot its own disk, and pygrub is not installed",
            hint="name it: --pygrub=/usr/lib/xen-4.17/bin/pygrub",
        )
    return found
