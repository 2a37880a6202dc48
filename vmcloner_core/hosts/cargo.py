"""What crosses of a clone that is moved to another host: what it is, and its disks' sizes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.extents import GRANULE
from vmcloner_core.model import MAX_DISKS, Labels
from vmcloner_core.records import Record, record_of
from vmcloner_core.units import MAX_SIZE
from vmcloner_core.values_file import check_value

if TYPE_CHECKING:
    pass

MAX_KEY = 4096
"""Characters of an SSH host key."""
_PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\n"
_PUBLIC = re.compile(r"ssh-[a-z0-9-]{1,32} [A-Za-z0-9+/=]{16,1024}( [\x21-\x7e]{0,256})?")


@attrs.frozen(kw_only=True)
class CargoDisk:
    """A disk of a clone.

    :param size: bytes. :param data: bytes of it that aren't zeros, about.
    :param digest: see :func:`content_digest`; empty while the disk has not been read.
    """

    number: int
    size: int
    data: int
    digest: str = ""

    def __attrs_post_init__(self) -> None:
        if not (0 <= self.number < MAX_DISKS and 0 < self.size <= MAX_SIZE):
            raise InvalidRequest(f"disk {self.number} of {self.size} bytes")
        if not 0 <= self.data <= self.size + GRANULE:
            raise InvalidRequest(f"disk {self.number}: {self.data} bytes of data")
        if not re.fullmatch("([0-9a-f]{64})?", self.digest):
            raise InvalidRequest("not a digest")


@attrs.frozen(kw_only=True)
class Cargo:
    """A clone that is to be moved: what it is, and how much of its disks has to be sent.

    :param record: its record (:func:`record_text`). :param host_key: its SSH host key, private and
        public; None if it has none.
    :param pool: the id of its pool; empty if that has none, or hands nothing over to other hosts.
    """

    labels: Labels
    record: str = attrs.field(repr=False)
    disks: tuple[CargoDisk, ...]
    host_key: tuple[str, str] | None = attrs.field(default=None, repr=False)
    pool: str = ""

    def __attrs_post_init__(self) -> None:
        if not 0 < len(self.disks) <= MAX_DISKS:
            raise InvalidRequest(f"{len(self.disks)} disks")
        if self.host_key is not None and not _is_key(*self.host_key):
            raise InvalidRequest("not an SSH host key")
        values: object = self.known().values
        if not isinstance(values, dict):
            raise InvalidRequest(f"{self.name}: not its values")
        for key, value in values.items():
            check_value(key, value, self.name)

    @property
    def name(self) -> str:
        """The clone's name."""
        return self.labels.clone

    @property
    def data(self) -> int:
        """The bytes that have to be sent, before they are compressed."""
        return sum(disk.data for disk in self.disks)

    def known(self) -> Record:
        """Return the clone's record. :raises InvalidRequest: it is none."""
        record = record_of(self.record, self.name)
        if record is None or not record.labels.same_clone(self.labels):
            raise InvalidRequest(f"{self.name}: not its record")
        return record

    def disk(self, item: str) -> CargoDisk:
        """Return a disk by its number. :raises InvalidRequest: there is none of it."""
        for disk in self.disks:
            if str(disk.number) == item:
                return disk
        raise InvalidRequest(f"{self.name} has no disk {item!r}")


def _is_key(private: str, public: str) -> bool:
    fits = len(private) <= MAX_KEY and private.startswith(_PRIVATE) and private.isascii()
    return fits and _PUBLIC.fullmatch(public) is not None
