"""Full copies in a folder: sparse files that have their labels before their bytes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import attrs

from vmcloner_core.full_copies import CopyPool
from vmcloner_core.model import CloneRequest, Origin, Volume
from vmcloner_core.os_errors import translated
from vmcloner_files.cloning import as_volume, disk_size, open_image
from vmcloner_files.pool import Pool


@attrs.frozen
class FolderCopies(CopyPool):
    """The copies in a folder. ``name``: the pool's name."""

    pool: Pool
    name: str
    zeroed = True

    def extend(self, volume: Volume, request: CloneRequest) -> Volume:
        """See :meth:`CopyPool.extend`."""
        origin = request.origin
        image = 0
        if origin is not None:
            image = origin.check_held(self.pool.image(origin.template)).size
        size = disk_size(request, image)
        if size <= volume.size:
            return volume
        self._relabel(volume, size=size)
        return attrs.evolve(volume, size=size)

    def finish(self, volumes: Sequence[Volume]) -> None:
        """See :meth:`CopyPool.finish`."""
        for volume in volumes:
            self._relabel(volume, complete=True)

    def _relabel(self, volume: Volume, *, size: int | None = None, complete: bool = False) -> None:
        """Change the record of a volume, and the length of its file accordingly."""
        with translated(volume.path):
            fd = os.open(volume.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            with contextlib.closing(os.fdopen(fd, "rb")), self.pool.lock():
                record = self.pool.disk(volume.labels, volume.disk)
                if record is not None:
                    changed = attrs.evolve(record, size=size or record.size, complete=complete)
                    os.ftruncate(fd, changed.size)
                    self.pool.labels.write(fd, volume.path, changed.to_mapping())
                    os.fsync(fd)

    def find(self, names: Sequence[str]) -> Mapping[str, Volume]:
        """See :meth:`CopyPool.find`."""
        paths = [self.pool.volumes / name for name in names]
        records = {path: self.pool.record(path) for path in paths}
        return {
            path.name: as_volume(path, record, self.pool, self.name)
            for path, record in records.items()
            if record is not None
        }

    @contextlib.contextmanager
    def source(self, origin: Origin) -> Iterator[int]:
        """See :meth:`CopyPool.source`."""
        with self.pool.lock():
            image = open_image(self.pool, origin)
        try:
            yield image.fd
        finally:
            os.close(image.fd)
