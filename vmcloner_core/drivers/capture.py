"""The contract of capturing: a pool makes a template's image of a clone's disk. It is optional."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from vmcloner_core.model import AS_IT_COMES, Copying, Origin, Outcome, Progress, Volume


@attrs.frozen(kw_only=True)
class CaptureRequest:
    """Request to make an image of a volume, in the volume's own pool.

    :param template: whose image it becomes. :param digest: what the image's digest shall be.
    :param live: a running guest, with frozen file systems, has the volume open.
    """

    template: str
    volume: Volume
    digest: str
    live: bool = False
    copying: Copying = attrs.field(default=AS_IT_COMES, eq=False)


class CaptureInterface(ABC):
    """Makes templates' images of clones' disks, and lends these images for reading."""

    @abstractmethod
    def capture(
        self,
        request: CaptureRequest,
        change: Callable[[Path], None],
        taken: Callable[[], None],
        progress: Progress,
    ) -> Outcome[Origin]:
        """Make a volume's bytes the template's read-only image, raw, as it is after ``change``.

        Nothing writes to the volume until ``taken``, and it is active. It isn't changed.

        :param change: called with the copy's path, before it has the image's name. What it raises
            ends the capture, and leaves nothing under that name.
        :param taken: called once the volume isn't read any more.
        :returns: unchanged if the template has an image of that digest.
        :raises Conflict: the template has another image, or something else has its name.
        :raises NotEnoughResources: no room in the pool.
        """

    @abstractmethod
    def need(self, volume: Volume) -> int:
        """Return the bytes that an image of this volume takes when it is made."""

    @abstractmethod
    def image(self, template: str) -> AbstractContextManager[Path]:
        """Yield the path of a template's raw image, to be read.

        :raises NotFound: there is none.
        """
