"""Kernels and initrds out of clones' disks, as files; what clones have in common is kept once.

Clones of one template boot the same kernel as a rule. A file that is byte for byte one that was
taken out before is a second name (a hard link) of that one. Nothing is believed to be the same:
each clone's own is read, and compared as it is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vmcloner_boot.choice import Choice, Found
from vmcloner_boot.disk_image import MIB, Unreadable
from vmcloner_core.drivers import SHARED
from vmcloner_core.errors import HostCommandError, NotEnoughResources, VmclonerError

MAX_KERNEL = 128 * MIB
MAX_INITRD = 512 * MIB
"""Bytes of all initrds together."""
MAX_DRAFT = 3600
"""Seconds, after which a file that wasn't finished is nobody's."""
_KERNEL_MAGIC = (
    (0x202, b"HdrS"),  # Linux/x86 boot protocol 2.00 and later (Documentation/arch/x86/boot.rst)
    (0, b"\x7fELF"),
)


def extract(choice: Choice, folder: Path, key: str) -> tuple[Path, Path | None]:
    """Put what a clone boots into its folder; returns the paths of its kernel and its initrd.

    :param key: what files that may be the same have in common: the template's name.
    :raises Unreadable: too large, or no kernel. :raises NotEnoughResources: no room for it.
    """
    kernel = choice.kernel
    _check_sizes(choice)
    store = _Store(folder.parent / SHARED)
    parts = _checked_kernel(kernel)
    path = folder / "kernel"
    store.keep(f"{key}.kernel.{kernel.node.size}", kernel.node.size, parts, path)
    if not choice.initrds:
        return path, None
    size = sum(found.node.size for found in choice.initrds)
    initrd = folder / "initrd"
    store.keep(f"{key}.initrd.{size}", _padded_size(choice.initrds), _joined(choice), initrd)
    return path, initrd


def check(choice: Choice) -> None:
    """Check what a clone boots as far as that goes without reading it all.

    :raises Unreadable: too large, or no kernel.
    """
    _check_sizes(choice)
    next(_checked_kernel(choice.kernel))


def _check_sizes(choice: Choice) -> None:
    _check_size([choice.kernel], MAX_KERNEL, "a kernel")
    _check_size(choice.initrds, MAX_INITRD, "an initrd")


def _check_size(files: Sequence[Found], limit: int, what: str) -> None:
    size = sum(found.node.size for found in files)
    names = ", ".join(map(str, files))
    if size > limit:
        raise Unreadable(f"{names}: {size // MIB} MiB is too much for {what} ({limit // MIB} MiB)")
    if any(found.node.size == 0 for found in files):
        raise Unreadable(f"{names} is empty")


def _checked_kernel(found: Found) -> Iterator[bytes]:
    parts = found.tree.system.content(found.node)
    first = next(parts, b"")
    if not any(first.startswith(magic, offset) for offset, magic in _KERNEL_MAGIC):
        raise Unreadable(f"{found} is no kernel (neither a bzImage nor ELF)")
    yield first
    yield from parts


def _padded_size(files: Sequence[Found]) -> int:
    return sum(found.node.size + -found.node.size % 4 for found in files)


def _joined(choice: Choice) -> Iterator[bytes]:
    """Yield initrds one behind the other, each at a multiple of 4 (Documentation/driver-api/
    early-userspace/buffer-format.rst)."""
    for found in choice.initrds:
        yield from found.tree.system.content(found.node)
        yield bytes(-found.node.size % 4)


class _Store:
    """Files that clones have in common. Safe for many threads and processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, key: str, size: int, parts: Iterable[bytes], to: Path) -> None:
        """Make ``to`` a file of these parts, ``size`` bytes together."""
        try:
            self._prune(key)
            self._keep(self._folder / key, size, iter(parts), to)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            kind: type[VmclonerError] = NotEnoughResources if full else HostCommandError
            raise kind(f"can't write {to}: {error.strerror}") from error

    def _keep(self, shared: Path, size: int, parts: Iterator[bytes], to: Path) -> None:
        with contextlib.ExitStack() as stack:
            old = _opened(shared, size)
            same = 0
            rest: Iterable[bytes] = parts
            if old is not None:
                stack.callback(os.close, old)
                for part in parts:
                    if os.pread(old, len(part), same) != part:
                        rest = _before(part, parts)
                        break
                    same += len(part)
                else:
                    if _linked(old, to):
                        return
            self._write(shared, to, _copied(old, same), rest, size)

    def _write(
        self, shared: Path, to: Path, first: Iterable[bytes], rest: Iterable[bytes], size: int
    ) -> None:
        draft, descriptor = self._draft()
        try:
            with os.fdopen(descriptor, "wb") as stream:
                for parts in (first, rest):
                    for part in parts:
                        stream.write(part)
                if stream.tell() != size:
                    raise Unreadable("its file system changes while it is read")
            os.link(draft, to)
            draft.replace(shared)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def _draft(self) -> tuple[Path, int]:
        """Return a new file of mode 0600, and its descriptor."""
        while True:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile, as it was empty
                descriptor, name = tempfile.mkstemp(prefix=".", dir=self._folder)
                return Path(name), descriptor

    def _prune(self, key: str) -> None:
        """Remove what no clone has a name for any more, but what may be wanted now.

        A draft is removed when whoever wrote it must have died long ago.
        """
        old = time.time() - MAX_DRAFT
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                draft = entry.name.startswith(".")
                unused = found.st_nlink == 1 and not entry.name.startswith(key)
                if found.st_mtime < old if draft else unused:
                    Path(entry.path).unlink()


def _opened(path: Path, size: int) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # not there, or the hypervisor's by now
        return None
    if os.fstat(descriptor).st_size == size:
        return descriptor
    os.close(descriptor)
    return None


def _linked(descriptor: int, to: Path) -> bool:
    """Give an open file, and no other that took its name meanwhile, another name."""
    try:
        # With a folder's descriptor, which an absolute path doesn't need, Python uses linkat(2),
        # and that follows the link to the open file.
        os.link(f"/proc/self/fd/{descriptor}", to, src_dir_fd=descriptor)
    except OSError:  # its last name is gone, or links of others' files are forbidden
        return False
    return True


def _copied(descriptor: int | None, length: int) -> Iterator[bytes]:
    at = 0
    while descriptor is not None and at < length:
        part = os.pread(descriptor, min(MIB, length - at), at)
        if not part:
            return
        yield part
        at += len(part)


def _before(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
