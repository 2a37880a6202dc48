"""Disks: a template's image in a pool, its clones, and requests to create them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import attrs

from vmcloner_core.errors import InvalidRequest, NotFound, WrongState
from vmcloner_core.model.labels import Labels
from vmcloner_core.names import split_volume, volume_name
from vmcloner_core.units import format_size


class CloneMode(enum.Enum):
    """How a clone's volume is created from its template: sharing its blocks, or as a full copy."""

    LINKED = "linked"
    FULL = "full"


class ImageRecord(Protocol):
    """What a pool notes of a template's image, at least."""

    @property
    def digest(self) -> str:
        """The digest of the source that was imported."""


R = TypeVar("R", bound=ImageRecord)


@attrs.frozen(kw_only=True)
class Origin:
    """A template's image in a pool, which clones are created from. Read-only.

    :param size: virtual bytes. :param allocated: bytes that contain data.
    :param extents: number of extents on disk, None if the pool has no extents.
    :param digest: of the source that was imported, to tell whether to import again.
    """

    template: str
    pool: str
    size: int
    allocated: int
    digest: str
    extents: int | None = None

    def check_held(self, record: R | None) -> R:
        """Return the record of the image that its pool has of the template, if it is this image.

        :param record: None if the pool has none.
        :raises NotFound: it has none. :raises WrongState: it has another one.
        """
        if record is None:
            raise NotFound(
                f"template {self.template} has no image in pool {self.pool}",
                hint=f"vmcloner template import {self.template} --storage {self.pool}",
            )
        if record.digest != self.digest:
            raise WrongState(
                f"the image of template {self.template} in pool {self.pool} was replaced",
                hint="run the same command again",
            )
        return record


@attrs.frozen(kw_only=True)
class NetworkSource:
    """Where a hypervisor reaches a volume over the network, in libvirt's terms.

    :param name: the volume's name for its protocol (``POOL/IMAGE``).
    :param hosts: the servers, ``HOST`` or ``HOST:PORT``; empty for those in ``config``.
    :param config: the client's configuration file on the host, None for none.
    :param user: who the hypervisor is to the servers. :param key: the file with that user's key:
        a keyring, or the key alone. The key itself is in no value, definition, argument or log.
    :param secret: UUID of a secret of the hypervisor with that key; "" if it is to read ``key``.
    """

    protocol: Literal["rbd"]
    name: str
    hosts: tuple[str, ...] = ()
    config: Path | None = None
    user: str
    key: Path
    secret: str = ""


@attrs.frozen(kw_only=True)
class Volume:
    """A clone's disk, and where the hypervisor finds it.

    :param name: the volume's name in its pool, ``CLONE-diskN``.
    :param path: absolute path on the host; of a network volume, which isn't opened by a path, the
        one that it is known by. :param format: the image format, as libvirt names it.
    :param kind: ``file``, ``block`` or ``network``, libvirt's disk type. :param size: virtual
        bytes. :param network: of a network volume, where it is; None for others.
    :param backing: the raw file below a qcow2 overlay, according to its pool.
    :param complete: False while bytes are missing: a copy is in progress, or was interrupted.
        The same request completes it, and it can be deleted.
    """

    name: str
    pool: str
    labels: Labels
    path: Path
    size: int
    format: Literal["raw", "qcow2"] = "raw"
    kind: Literal["file", "block", "network"] = "file"
    network: NetworkSource | None = None
    backing: Path | None = None
    complete: bool = True

    @property
    def disk(self) -> int:
        """Its number among the clone's disks, from 0."""
        return (split_volume(self.name) or ("", 0))[1]


Progress = Callable[[int, int], None]
"""Called with (done, total) in bytes; total is 0 if unknown. From any thread."""


VolumeProgress = Callable[[str, int, int], None]
"""Called with (a volume's name, bytes done, total) while it is filled. From any thread."""


def untold(_name: str, _done: int, _total: int) -> None:
    """Ignore progress."""


@attrs.frozen(kw_only=True)
class Copying:
    """How bytes are copied when images are imported and FULL clones are created.

    LINKED clones share their origin's blocks. No bytes are copied for them, so nothing is limited,
    verified or reported.

    :param bandwidth: bytes per second that one call may write, None for no limit.
    :param verify: read back what was written and compare it with the source.
    """

    bandwidth: int | None = None
    verify: bool = False

    def __attrs_post_init__(self) -> None:
        if self.bandwidth is not None and self.bandwidth < 1:
            raise InvalidRequest(f"bandwidth must be positive, not {self.bandwidth}")

    def with_defaults(self, defaults: Copying) -> Copying:
        """Return these options with a pool's defaults for options that are not given."""
        return attrs.evolve(
            self,
            bandwidth=self.bandwidth or defaults.bandwidth,
            verify=self.verify or defaults.verify,
        )


AS_IT_COMES = Copying()
"""Copy without a limit and without verification."""


@attrs.frozen(kw_only=True)
class CloneRequest:
    """Request to create one volume: a clone of an origin, or a blank volume.

    :param disk: its number among the clone's disks, from 0.
    :param origin: the image to clone, according to ``mode``. None for a blank volume, which
        contains zeros after ``head``, and shares nothing in either mode.
    :param size: bytes, at least the origin's; None for the origin's. Required for blank volumes.
    :param copying: how bytes are copied, if the volume is a copy.
    """

    labels: Labels
    disk: int = 0
    origin: Origin | None = None
    mode: CloneMode = CloneMode.LINKED
    size: int | None = None
    head: bytes = attrs.field(default=b"", repr=False)
    copying: Copying = attrs.field(default=AS_IT_COMES, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.origin is None and (self.size or 0) < max(1, len(self.head)):
            raise InvalidRequest(f"{self.volume_name}: a blank disk needs a size")

    @property
    def volume_name(self) -> str:
        """Name of the volume in its pool, and the key of its outcomes."""
        return volume_name(self.labels.clone, self.disk)

    def size_over(self, image: int) -> int:
        """Return the bytes of the volume.

        :param image: bytes of the origin's image, 0 without an origin.
        :raises InvalidRequest: the volume would be smaller than the image.
        """
        size = self.size or image
        if size < image:
            raise InvalidRequest(
                f"{self.volume_name}: a disk of {format_size(size)} is smaller than its "
                f"template's image, {format_size(image)}",
                hint="set disk_size to at least that",
            )
        return size


@attrs.frozen(kw_only=True)
class Capacity:
    """The capacity of a pool, in bytes.

    :param volumes_free: how many more volumes fit, whatever their size; None if only bytes limit
        them.
    :param warnings: problems that users should know about in time (``metadata 83 % full``).
    """

    total: int
    free: int
    volumes_free: int | None = None
    warnings: tuple[str, ...] = ()
