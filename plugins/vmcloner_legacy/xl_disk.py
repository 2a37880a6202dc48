"""A disk of an xl.cfg file, in any of the forms that xl and xm took.

xl-disk-configuration(5): ``target, format, vdev, access`` and ``key=value`` in any order. Before
it: ``phy:target,vdev,access`` with prefixes that name a format or a backend, ``ioemu:`` before the
vdev, ``:cdrom`` after it.
"""

from __future__ import annotations

import re

import attrs

_FORMATS = {"raw", "qcow", "qcow2", "vhd", "qed"}
_SCRIPTS = {"iscsi", "nbd", "enbd", "drbd"}
_PREFIX = re.compile(
    r"(raw|qcow2?|vhd|iscsi|e?nbd|drbd|tapdisk|tap2?|aio|ioemu|file|phy):|"
    r"([a-z][a-z0-9]*):(?![a-z0-9])"
)
_NAMED = re.compile(r"([a-z][-a-z0-9]*)=([^,]*),?")
_POSITIONAL = re.compile(r"([^,]*),?")


@attrs.define
class Disk:
    """A disk as a line describes it.

    :param format: empty where the line doesn't say. :param lost: what isn't carried over of it.
    :param prefixed: it had a prefix, so no word is its format. :param placed: its access was said.
    :param foreign: it is no file or device of this host, but a name that a script or QEMU knows.
    """

    target: str | None = None
    format: str = ""
    vdev: str | None = None
    access: str | None = None
    cdrom: bool = False
    prefixed: bool = False
    placed: bool = False
    foreign: bool = False
    lost: list[str] = attrs.field(factory=list)

    @property
    def read_only(self) -> bool:
        """Whether the guest may not write to it."""
        return self.access in ("r", "ro")

    @property
    def swap(self) -> bool:
        """Whether its name is that of a swap area: ``NAME-swap``, ``swap.img``."""
        name = (self.target or "").rpartition("/")[2].lower()
        return re.fullmatch(r"(.*[-_.])?swap[0-9]*([-_.](img|raw|disk|vol))?", name) is not None

    @property
    def medium(self) -> bool:
        """Whether it is a CD, or looks like one: the guest was installed from it."""
        return self.cdrom or (self.read_only and (self.target or "").lower().endswith(".iso"))


def parse(text: str) -> Disk:
    """Return the disk that a text describes."""
    disk, rest = Disk(), text.strip()
    phy = rest.startswith("phy:")
    while rest:
        if rest.startswith("target="):  # takes all that follows
            disk.target = rest.removeprefix("target=").removesuffix(",")
            break
        if prefix := _PREFIX.match(rest):
            _prefix(prefix[1] or prefix[2], disk)
            rest = rest[prefix.end() :]
            continue
        if named := _NAMED.match(rest):
            _named(named[1], named[2].strip(), disk)
            rest = rest[named.end() :].lstrip()
            continue
        word = _POSITIONAL.match(rest)
        assert word is not None  # noqa: S101 - it matches anything
        _word(word[1].strip(), disk)
        rest = rest[word.end() :].lstrip()
    if phy and disk.target and not disk.target.startswith("/"):
        disk.target = f"/dev/{disk.target}"
    if disk.target and ":" in disk.target.partition("/")[0]:
        disk.foreign = True
        disk.lost.append(f"{disk.target} is no file or device of this host")
    if disk.access not in (None, "", "w", "rw") and not disk.cdrom:
        disk.lost.append(f"access={disk.access}: a clone may write to its disk")
    return disk


def _prefix(name: str, disk: Disk) -> None:
    disk.prefixed = True
    if name in _FORMATS:
        disk.format = name
    elif name in _SCRIPTS:
        disk.foreign = True
        disk.lost.append(f"{name}: isn't carried over")
    elif not re.fullmatch("tapdisk|tap2?|aio|ioemu|file|phy", name):
        disk.lost.append(f"{name}: isn't known")


def _named(key: str, value: str, disk: Disk) -> None:
    if key == "format":
        disk.format = value or "raw"
    elif key == "vdev":
        disk.vdev = value
    elif key == "access":
        disk.access = value
    elif key == "devtype" and value in ("cdrom", "disk"):
        disk.cdrom = value == "cdrom"
    else:
        disk.lost.append(f"{key}={value} isn't carried over")


def _word(word: str, disk: Disk) -> None:
    """Take a word by its place: target, format, vdev, access."""
    if word == "cdrom":
        disk.cdrom = True
    elif word in ("discard", "no-discard", "direct-io-safe", "trusted", "untrusted", "colo"):
        disk.lost.append(f"{word} isn't carried over")
    elif disk.target is None:
        disk.target = word
    elif not disk.prefixed and not disk.format and not (not disk.target and ":" in word):
        disk.format = word or "raw"
    elif disk.vdev is None:
        disk.vdev, _, kind = word.partition(":")
        if kind:
            disk.cdrom = kind == "cdrom"
        if kind not in ("", "cdrom", "disk"):
            disk.lost.append(f":{kind} isn't known")
    elif not disk.placed:
        disk.access, disk.placed = word, True
    elif word:
        disk.lost.append(f"{word} isn't carried over")
