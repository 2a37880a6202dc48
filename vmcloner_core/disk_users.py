"""Who uses clones' disks, beside the clones themselves; and what the clones use instead of them.

Labels say what vmcloner made. Domains may have been renamed, copied or switched to overlays since,
and other programs may have opened the disks. So a disk is removed or replaced only after all
domains and processes of the host were asked: once for a whole run.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from vmcloner_core.errors import WrongState
from vmcloner_core.model import DiskFile, DiskSnapshot, DomainUse, Volume
from vmcloner_core.process import arguments_of, device_holder, files_of, open_files, process_shown
from vmcloner_core.qcow2 import MAX_HEADER, Refused, backing_file, read_header

MAX_CHAIN = 32
"""Overlays on one another that are followed."""
MOMENT = 2.0
"""Seconds after which a process that has a disk open is one of its users."""
_LOCKERS = re.compile(r"(.*/)?(virtlockd|sanlock)")
"""libvirt's lock managers hold the disks of running domains open."""
_MAPPED = re.compile(r"/dev/(?!mapper/)([^/]+)/([^/]+)")

Key = tuple[str, int, int] | str
IsOwn = Callable[[DomainUse, Sequence[str]], bool]
"""Tells whether a process with these arguments is a domain's own."""


@attrs.frozen(kw_only=True)
class Moved:
    """What a clone's domain uses instead of a volume of the clone.

    :param now: what the disk uses. :param overlays: it and what is below, down to the volume.
    :param own: whether all of these are snapshots beside the volume, made for it.
    """

    volume: Volume
    now: Path
    overlays: tuple[Path, ...] = ()
    own: bool = False


class DiskUsers:
    """The users of a run's volumes.

    :param uses: those of all domains on the host.
    :param volumes: all volumes that are asked about: processes are looked for once.
    """

    def __init__(self, uses: Sequence[DomainUse], volumes: Iterable[Volume | DiskSnapshot]) -> None:
        self._chains = _Chains()
        self._own = {use.name: use for use in uses}
        self._domains: dict[Key, list[DomainUse]] = {}
        for use in uses:
            files = [*use.files, *use.disks]
            for key in {k for file in files for f in self._chains.of(file) for k in keys(f)}:
                self._domains.setdefault(key, []).append(use)
        self._until: float | None = None
        self._devices = dict(_loops())
        self._processes = _processes({key for v in volumes for key in keys(v.path)})

    def check(self, clone: str, volumes: Sequence[Volume | DiskSnapshot], is_own: IsOwn) -> None:
        """Check that nothing but a clone's own domain uses its volumes and their snapshots.

        :raises WrongState: something does; names it, and the way out.
        """
        own = self.domain(clone)
        if own is not None and own.job:
            raise WrongState(
                f"{clone}: libvirt is at work on its disk: {own.job}",
                hint=f"virsh blockjob {clone} DISK --abort, or wait for its end",
            )
        for volume in volumes:
            for key in keys(volume.path):
                for use in self._domains.get(key, ()):
                    if own is None or use.uuid != own.uuid:
                        raise WrongState(
                            f"{clone}: its disk {volume.path} is used by domain {use.name!r}",
                            hint=f"virsh undefine {use.name}, or take the disk out of it",
                        )
                for pid in self._processes.get(key, ()):
                    words = arguments_of(pid)
                    if _LOCKERS.fullmatch(words[0] if words else ""):
                        continue
                    mine = own is not None and is_own(own, words)
                    if not mine and self._stays_open(pid, key):
                        raise WrongState(
                            f"{clone}: its disk {volume.path} is used by {process_shown(pid)}",
                            hint="end that process first",
                        )
                if holder := self._devices.get(key) or _holder(key):
                    raise WrongState(
                        f"{clone}: its disk {volume.path} is used by {holder}",
                        hint="unmount it, or detach that device, first",
                    )

    def _stays_open(self, pid: int, key: Key) -> bool:
        """Tell whether a process keeps a file open: udev and LVM look at devices for a moment.

        All processes together get :data:`MOMENT`.
        """
        if self._until is None:
            self._until = time.monotonic() + MOMENT
        while any(_number(status) == key for status in files_of(pid)):
            if time.monotonic() >= self._until:
                return True
            time.sleep(0.05)
        return False

    def domain(self, clone: str) -> DomainUse | None:
        """Return what a clone's own domain uses, None if it has no domain."""
        return self._own.get(clone)

    def moved(self, clone: str, volumes: Sequence[Volume]) -> tuple[Moved, ...]:
        """Return the volumes of a clone that its domain doesn't use directly (any more)."""
        use = self.domain(clone)
        if use is None:
            return ()
        ours = {key: volume for volume in volumes for key in keys(volume.path)}
        tops = [file for file in use.disks if not ours.keys() & keys(file.path)]
        direct = {v.name for f in use.disks for k in keys(f.path) if (v := ours.get(k)) is not None}
        found = {file: self._switched(file, volumes) for file in tops}
        over = [moved for moved in found.values() if moved is not None]
        known = {moved.volume.name for moved in over}
        # A disk that has nothing to do with any volume, while a volume isn't anybody's disk.
        strange = [file.path for file, moved in found.items() if moved is None]
        lost = [volume for volume in volumes if volume.name not in known | direct]
        other = [Moved(volume=v, now=path) for v, path in zip(lost, strange, strict=False)]
        return (*over, *other)

    def _switched(self, file: DiskFile, volumes: Sequence[Volume]) -> Moved | None:
        """Return what a disk's file is to one of the volumes: an overlay, or None."""
        chain = self._chains.of(file)
        for volume in volumes:
            wanted = keys(volume.path)
            place = next((n for n, path in enumerate(chain) if wanted & keys(path)), None)
            # A chain that ends at a file that is gone: a killed run had begun to remove it.
            gone = place is None and not os.path.lexists(chain[-1])
            broken = gone and all(_beside(volume, path) for path in chain)
            if place is not None or broken:
                above = tuple(chain[:place])
                own = all(_beside(volume, path) for path in above)
                return Moved(volume=volume, now=file.path, overlays=above, own=own)
        return None

    def overlays(self, clone: str, volumes: Sequence[Volume]) -> tuple[Path, ...]:
        """Return the overlays that snapshots of a clone made beside its volumes, the lowest first.

        Only those that no other domain uses; who uses one has the volume below it open too.
        """
        use = self.domain(clone)
        if use is None:
            return ()
        chains = [p for moved in self.moved(clone, volumes) for p in moved.overlays[::-1]]
        found = dict.fromkeys([*chains, *use.snapshots])
        return tuple(
            path
            for path in found
            if any(_beside(volume, path) for volume in volumes) and not self._others(use, path)
        )

    def _others(self, own: DomainUse, path: Path) -> bool:
        return any(use.uuid != own.uuid for key in keys(path) for use in self._domains.get(key, ()))


def check_back(clone: str, moved: Sequence[Moved]) -> None:
    """Check that a clone's disks can be its volumes again.

    :raises WrongState: one is on a file that isn't vmcloner's or a snapshot's; names it.
    """
    for each in moved:
        if not each.own:
            foreign = next((p for p in each.overlays if not _beside(each.volume, p)), each.now)
            what = "an overlay of its volume" if each.overlays else "not its volume"
            raise WrongState(
                f"{clone}: its disk is on {foreign}, {what} {each.volume.path}",
                hint=f"virsh blockcommit, or virsh edit {clone} to use the volume again; or "
                f"vmcloner delete {clone} and create it again",
            )


def keys(path: Path) -> set[Key]:
    """Return what a file or device is known by: its path, and its number while it is there."""
    plain = os.path.realpath(path)
    found: set[Key] = {plain, _MAPPED.sub(_mapped, str(path))}
    with contextlib.suppress(OSError):
        found.add(_number(os.stat(plain)))  # noqa: PTH116 - a plain string is faster
    return found


def _mapped(match: re.Match[str]) -> str:
    """Return the device mapper's name of ``/dev/GROUP/VOLUME``."""
    group, volume = (part.replace("-", "--") for part in match.groups())
    return f"/dev/mapper/{group}-{volume}"


def _number(status: os.stat_result) -> Key:
    if stat.S_ISBLK(status.st_mode):
        return ("device", os.major(status.st_rdev), os.minor(status.st_rdev))
    return ("file", status.st_dev, status.st_ino)


def _beside(volume: Volume, path: Path) -> bool:
    """Tell whether a file is beside a volume and named for it, as snapshots' overlays are."""
    return (
        volume.kind == "file"
        and path.parent == volume.path.parent
        and path.name.startswith(f"{volume.path.name}.")
    )


class _Chains:
    """Files, each with those that it is an overlay of. Each header is read once."""

    def __init__(self) -> None:
        self._below: dict[DiskFile, DiskFile | None] = {}

    def of(self, file: DiskFile) -> list[Path]:
        """Return a file and what is below it, the lowest last."""
        chain: list[Path] = []
        below: DiskFile | None = file
        while below is not None and below.path not in chain and len(chain) < MAX_CHAIN:
            chain.append(below.path)
            if below not in self._below:
                self._below[below] = _below(below)
            below = self._below[below]
        return chain


def _below(file: DiskFile) -> DiskFile | None:
    """Return what an image is an overlay of. A raw disk's bytes are its guest's: not a header."""
    if file.format != "qcow2":
        return None
    try:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(mode := os.fstat(fd).st_mode) and not stat.S_ISBLK(mode):
            return None
        header = read_header(lambda offset, length: os.pread(fd, min(length, MAX_HEADER), offset))
        if header.backing is None:
            return None
        path, kind = backing_file(file.path, header)
    except (OSError, Refused):
        return None
    finally:
        os.close(fd)
    return DiskFile(path=path, format=kind)


def _processes(wanted: Collection[Key]) -> Mapping[Key, list[int]]:
    """Return the processes that have these files open, by one pass over all processes."""
    found: dict[Key, list[int]] = {}
    for pid, status in open_files():
        key = _number(status)
        if key in wanted and pid not in found.setdefault(key, []):
            found[key].append(pid)
    return found


def _holder(key: Key) -> str:
    """Return what inside the kernel uses a block device, "" if nothing does."""
    if isinstance(key, str) or key[0] != "device":
        return ""
    return device_holder(os.makedev(key[1], key[2]))


def _loops() -> Iterator[tuple[Key, str]]:
    """Yield the files under loop devices: the kernel holds these, no process does."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            for key in keys(Path(backing.read_text().rstrip("\n"))):
                yield key, f"device {backing.parts[3]}"
