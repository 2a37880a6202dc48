"""Read a volume group's metadata: from its disks, or by LVM if the disks are in an unusual state.

A command of LVM scans all disks of the host and parses all of the metadata, and its output is
parsed again: with a thousand volumes that takes seconds on a slow machine. Reading the disks takes
milliseconds, and a text that is known is not parsed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.metadata import stored
from vmcloner_lvm.ondisk import read_metadata
from vmcloner_lvm.volumegroup import VolumeGroup, written_by

_RESERVE = 2048  # bytes of a metadata area for its header, and for whole sectors


class Reader:
    """Reads one group's metadata while its lock is held. Thread-safe.

    :param devices: returns those of the group's disks that are known without LVM.
    """

    def __init__(self, lvm: Lvm, devices: Callable[[], Sequence[Path]]) -> None:
        self._lvm = lvm
        self._devices = devices
        self._known: tuple[str, VolumeGroup] | None = None
        self._area: int | None = None

    def read(self, expected: VolumeGroup | None = None) -> VolumeGroup:
        """Return the metadata; this process holds the group's lock.

        :param expected: returned, without parsing, if the disks hold exactly that.
        :raises VmclonerError: see :meth:`Lvm.read`.
        """
        found = read_metadata(self._devices())
        if found is None:
            return self._lvm.read(held=True)
        self._area = found.area
        known = self._known
        if known is not None and known[0] == found.text:
            return known[1]
        if expected is not None and _body(found.text) == stored(expected.section):
            group = VolumeGroup(expected.tree, written_by(found.text))
        else:
            group = VolumeGroup.parse(found.text, self._lvm.group)
        self._known = found.text, group
        return group

    def area(self, *, held: bool) -> int:
        """Return the largest possible size of the group's metadata text, in bytes.

        :param held: this process holds the group's lock.
        """
        if self._area is None:
            self._area = self._lvm.facts(held=held).area
        return self._area // 2 - _RESERVE  # a ring buffer that holds the old and the new text


def _body(text: str) -> str:
    """Return the group's section of a text from a disk, without empty lines."""
    return "\n".join(filter(None, text[: text.rfind("\n}\n") + 3].split("\n"))) + "\n"
