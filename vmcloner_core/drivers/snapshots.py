"""The contracts of snapshots: what pools and hypervisors that have them do. Both are optional.

A pool keeps disks, a hypervisor what a machine is beside its disks: memory, the state of devices,
firmware variables, the state of a TPM. The engine sees to it that nothing writes to a disk while
its pool takes a snapshot: its machine is off, saved, or paused with frozen file systems.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vmcloner_core.drivers.context import Lane
from vmcloner_core.model import DiskSnapshot, Outcome, SnapshotRequest, Volume


class DiskSnapshotInterface(ABC):
    """Snapshots of a pool's volumes. Each belongs to its volume and is independent of it.

    So a volume can be changed, reset or removed, and its snapshots stay as they are; and each
    snapshot can be removed without the others. Labels are stored in the same step that makes one.
    """

    lane = Lane()

    def check_name(self, key: str) -> None:
        """Check that the pool can have a snapshot of that name, before anything is changed.

        :param key: what ``request.key`` will be. :raises InvalidRequest: it can't.
        """

    @abstractmethod
    def create(self, requests: Sequence[SnapshotRequest]) -> Iterator[Outcome[DiskSnapshot]]:
        """Take snapshots of volumes to which nothing writes; keys are ``request.key``.

        One with the same labels is returned unchanged (``changed=False``). One of that name from
        another run or clone, or something without our labels, is a Conflict. A volume that is
        missing is NotFound, an incomplete one WrongState. One that can't be taken leaves nothing
        under its name.
        """

    @abstractmethod
    def revert(self, snapshots: Sequence[DiskSnapshot]) -> Iterator[Outcome[Volume]]:
        """Give volumes their snapshots' contents and sizes; keys are the volumes' names.

        A volume keeps its labels, path and format; a missing one is made. Snapshots stay. One in
        use is WrongState, another clone's volume a Conflict, a missing snapshot NotFound. If the
        host crashes at any moment, a volume is the old or the new one, complete.
        """

    @abstractmethod
    def delete(self, snapshots: Sequence[DiskSnapshot]) -> Iterator[Outcome[None]]:
        """Remove snapshots; keys are ``snapshot.key``. A missing one is a success.

        One whose labels on the host are another clone's is a Conflict, one in use WrongState.
        """

    @abstractmethod
    def found(self) -> tuple[DiskSnapshot, ...]:
        """Return all snapshots in the pool that have our labels, also those of lost volumes."""

    @abstractmethod
    def need(self, volumes: Sequence[Volume]) -> int:
        """Return the bytes that snapshots of these volumes take when they are taken."""


class MachineInterface(ABC):
    """Domains apart from their disks, kept in folders. Keys of outcomes are the domains' names."""

    @abstractmethod
    def quiesce(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Have running guests write everything to their disks, freeze these, and pause them.

        :meth:`release` undoes it. A guest without an agent that does it is WrongState, and is
        left as it was.
        """

    @abstractmethod
    def release(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Continue guests that are quiesced. One that isn't, or that is off, is a success."""

    @abstractmethod
    def keep(self, folders: Mapping[str, Path], *, memory: bool) -> Iterator[Outcome[None]]:
        """Copy into empty folders of their own what domains are beside their disks.

        :param memory: with their memory; they must be SAVED, and stay so.
        :raises WrongState: by member: the domain's state doesn't allow it.
        """

    @abstractmethod
    def resume(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Continue saved domains as they were when they were saved: running or paused.

        So is one whose save goes on, after a run that was killed. One that isn't saved, or is gone,
        is a success.
        """

    @abstractmethod
    def check(self, folders: Mapping[str, Path]) -> Iterator[Outcome[None]]:
        """Check that :meth:`put_back` can do its work, whatever state the domains are in.

        Changes nothing. A folder that is damaged is WrongState; so is, if memory was kept, a
        domain whose devices have changed since.
        """

    @abstractmethod
    def put_back(self, folders: Mapping[str, Path]) -> Iterator[Outcome[None]]:
        """Make domains that are off what they were; with memory, they continue from there.

        They are running or paused then, as they were. Their disks have been put back before.
        A domain that has other saved memory loses it. One that runs is WrongState, and one that
        isn't defined NotFound. The folders stay as they are.
        """
