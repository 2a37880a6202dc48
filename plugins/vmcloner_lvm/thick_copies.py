"""Full copies in a volume group: what a copier needs of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import attrs

from vmcloner_core.errors import VmclonerError
from vmcloner_core.full_copies import CopyPool
from vmcloner_core.model import CloneRequest, Labels, Origin, Volume
from vmcloner_core.os_errors import translated
from vmcloner_lvm.thick_group import Contents, LogicalVolume, ThickGroup, image_name


@attrs.frozen
class ThickCopies(CopyPool):
    """The copies in a volume group. ``name``: the pool's name."""

    group: ThickGroup
    name: str

    def volumes(self, there: Contents) -> tuple[Volume, ...]:
        """Return the clones' volumes."""
        found = [(volume, volume.labels) for volume in there.values()]
        return tuple(self.volume(volume, labels) for volume, labels in found if labels is not None)

    def volume(self, volume: LogicalVolume, labels: Labels) -> Volume:
        """Return a clone's volume as the core knows it."""
        return Volume(
            name=volume.name,
            pool=self.name,
            labels=labels,
            path=self.group.path(volume.name),
            size=volume.size,
            kind="block",
            complete=volume.complete,
        )

    def size(self, there: Contents, request: CloneRequest) -> int:
        """Return the bytes of a request's volume, in whole extents."""
        origin = request.origin
        image = self.group.origin(there, origin).size if origin is not None else 0
        return self.group.whole(request.size_over(image))

    # --- for the copier -------------------------------------------------------------------------

    def extend(self, volume: Volume, request: CloneRequest) -> Volume:
        """See :meth:`CopyPool.extend`."""
        size = self.size(self.group.read(), request)
        if size <= volume.size:
            return volume
        self.group.extend(volume.name, size)
        return attrs.evolve(volume, size=size)

    def finish(self, volumes: Sequence[Volume]) -> None:
        """See :meth:`CopyPool.finish`."""
        self.group.complete([volume.name for volume in volumes])

    def find(self, names: Sequence[str]) -> Mapping[str, Volume]:
        """See :meth:`CopyPool.find`."""
        wanted, volumes = set(names), self.volumes(self.group.read())
        return {volume.name: volume for volume in volumes if volume.name in wanted}

    @contextlib.contextmanager
    def opened(self, volumes: Sequence[Volume]) -> Iterator[Mapping[str, VmclonerError]]:
        """See :meth:`CopyPool.opened`."""
        names = [volume.name for volume in volumes]
        try:
            errors = self.group.activate(names)
            yield {name: error for name, error in errors.items() if error is not None}
        finally:
            self.group.deactivate(names)  # one that another process has open stays active

    @contextlib.contextmanager
    def source(self, origin: Origin) -> Iterator[int]:
        """See :meth:`CopyPool.source`."""
        self.group.origin(self.group.read(), origin)
        name = image_name(origin.template)
        try:
            error = self.group.activate([name])[name]
            if error is not None:
                raise error
            with translated(self.group.path(name)):
                fd = os.open(self.group.path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield fd
            finally:
                os.close(fd)
        finally:
            self.group.deactivate([name])  # stays active while another copy reads it
