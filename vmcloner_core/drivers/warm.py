"""The contract of warm forks: several domains continue from the memory of one that has booted.

A parent boots without network cards and without its seed, so that nothing in its memory tells of
either. Its memory and the state of its devices are saved to a folder, once. Any number of domains
with the same devices then continue from there. The folder is only read by them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vmcloner_core.model import DomainSpec, Outcome


class WarmInterface(ABC):
    """Memory that several domains continue from. Optional. Names are resolved as the driver does.

    A fork is loaded, continues with its seed, and gets its cards: :meth:`load`, :meth:`go_on`,
    :meth:`connect`. It is powered off by its definition's rules from then on, and its next start
    boots it. Its definition is never changed.
    """

    @abstractmethod
    def depends(self, spec: DomainSpec) -> Mapping[str, str]:
        """Return what the memory of a domain like this one depends on, in short texts by subject.

        Memory that was saved where any of them was different is never used. Name, UUID, cards and
        the seed are no part of it; volumes may be missing. Changes nothing.

        :raises InvalidRequest: its memory can't be used by others; names the device or setting.
        """

    @abstractmethod
    def boot(self, name: str, folder: Path) -> None:
        """Boot a domain of ours that is off, without cards and seed, with its memory in a folder.

        One that was booted so before is booted again.

        :param folder: exists, and belongs to this alone. The driver may change its permissions.
        :raises NotFound: no such domain. :raises NotEnoughResources: no room in the folder.
        """

    @abstractmethod
    def save(self, name: str, folder: Path) -> None:
        """Keep the memory of a domain that :meth:`boot` booted with this folder, and stop it.

        :raises WrongState: it wasn't booted so, or doesn't run any more.
        :raises NotEnoughResources: no room in the folder.
        """

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Check that the memory in a folder is as :meth:`save` left it; cheap.

        :raises WrongState: it isn't; says what is wrong.
        """

    @abstractmethod
    def load(self, names: Sequence[str], folder: Path) -> Iterator[Outcome[None]]:
        """Load memory into domains of ours that are off: they are paused then, and have no cards.

        One that an earlier call loaded, and that has not continued, is loaded again. WrongState if
        the memory is not as it was saved, or is that of other devices or of another version of the
        hypervisor, or if others have started the domain; such a domain stays as it is.
        """

    @abstractmethod
    def go_on(self, seeds: Mapping[str, Path | None], serial: str) -> Iterator[Outcome[None]]:
        """Let loaded domains continue, each with its seed plugged in as a read-only disk.

        :param seeds: by the domains' names. :param serial: the serial number of these disks.
        """

    @abstractmethod
    def connect(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Plug in the cards that the definitions of running forks have; those there are left."""
